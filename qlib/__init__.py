"""Post-training quantization you can see: methods, quantizers and honest measurements.

``qlib.quantize(net, images)`` quantizes a network of one's own, ``qlib.load(path, net)`` brings it
back; both load PyTorch when they are first asked for.
"""

from typing import TYPE_CHECKING, Any

from qlib.core.records import Cancelled, Event, InvalidSpec, RunRecord, RunSpec

if TYPE_CHECKING:
    from qlib.pipeline.door import Quantized, load, quantize

__version__ = "0.1.0"

__all__ = [
    "Cancelled",
    "Event",
    "InvalidSpec",
    "Quantized",
    "RunRecord",
    "RunSpec",
    "load",
    "quantize",
]


def __getattr__(name: str) -> Any:
    if name not in ("Quantized", "load", "quantize"):
        raise AttributeError(f"module 'qlib' has no attribute {name!r}")
    from qlib.pipeline import door

    return getattr(door, name)
