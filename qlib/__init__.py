"""Post-training quantization you can see: methods, quantizers and honest measurements."""

from qlib.core.records import Cancelled, Event, InvalidSpec, RunRecord, RunSpec

__version__ = "0.1.0"

__all__ = ["Cancelled", "Event", "InvalidSpec", "RunRecord", "RunSpec"]
