"""A pretended run that writes a real run folder, and a worker that runs it: no torch, milliseconds.

Run as a script it takes the place of ``python -m qlib.worker``. The run does what its settings
say: ``steps`` and ``pause`` (seconds between them), ``fault`` (how to fail after the last step).
"""

import errno
import faulthandler
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from qlib import store, worker
from qlib.core.records import Event, InvalidSpec, Report, RunRecord, RunSpec

COMMAND = (sys.executable, __file__)
ROWS = 60


def spec(**settings: object) -> RunSpec:
    return RunSpec("digits-vit", "digits", "nearest", test=50, settings=settings)


def record(of: RunSpec, **changes: object) -> RunRecord:
    row = {
        "point": "blocks.0.attn.qkv.weight", "layer": "blocks.0.attn.qkv", "unit": "1",
        "kind": "linear", "tensor": "weight", "bits": 4, "symmetric": False, "scale": 0.25,
        "zero_point": 7.5, "channels": 192, "macs": 12288, "params": 12288, "sqnr_db": 18.5,
        "clipped": 0.0, "flipped": None,
    }  # fmt: skip
    metrics = {"top1": 91.25, "top1_low": 88.5, "top1_high": 93.0, "top1_float": 97.0, "n": 50,
               "agreement": 92.0, "kl": 0.25}  # fmt: skip
    if of.analysis:
        metrics |= {"worst_shared": 2, "worst_of": 3}
    else:
        metrics |= {"top1_nearest": 91.25, "lost": 4, "gained": 1, "weight_mb": 0.125, "gbops": 0.5}
    seconds = {"load": 2.0, "calibrate": 1.0, "reconstruct": 8.0, "evaluate": 1.0, "total": 12.0}
    values = {"created": "2025-01-01T00:00:00+00:00", "layers": [row] * ROWS} | changes
    return RunRecord(of, metrics, seconds, 640.0, **values)


def profile_row(layer: str, kl: float) -> dict[str, object]:
    numbers = {"top1": 90.0, "top1_low": 80.0, "top1_high": 95.0, "agreement": 99.0}
    return {
        "mode": "alone", "split": "both", "layer": layer, "unit": layer, "kind": "linear",
        "kl": kl, "kl_a": kl, "kl_b": kl / 2, **numbers, "sqnr_db": 20.0, "n": 50, "data": "test",
    }  # fmt: skip


def run(of: RunSpec, report: Report, folder: Path, known: object = ()) -> RunRecord:
    """Write what a run writes, as `qlib.pipeline.run.run` does; of an analysis, a few rows."""
    steps, pause = int(of.settings.get("steps", 3)), float(of.settings.get("pause", 0))
    threads, policy = os.environ.get("OMP_NUM_THREADS"), os.environ.get("OMP_WAIT_POLICY")
    report(Event("load", note=f"threads {threads} {policy} in {Path.cwd()}"))
    if of.settings.get("child"):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    for step in range(1, steps + 1):
        time.sleep(pause)
        if of.analysis:
            at = (f"blocks.{step}", step, steps)
            report(Event("profile", *at, loss=1 / step, note="alone both"))
        else:
            report(Event("reconstruct", "blocks.0", 1, 1, step, steps, loss=1 / step))
    _fail(of.settings.get("fault"))
    _write_preds(folder)
    (folder / "quantizers.safetensors").write_bytes(bytes(200_000))
    rows = [profile_row(f"blocks.{step}", 1 / step) for step in range(1, steps + 1)]
    found = record(of, layers=rows, data={"profile_rows": steps}) if of.analysis else record(of)
    store.write_record(found, folder)
    return found


def _fail(fault: object) -> None:
    """Fail as a run does, or as one whose process dies."""
    if fault == "refused":
        raise InvalidSpec(
            "The loss of blocks.0 is nan at iteration 3; try a smaller learning rate."
        )
    if fault == "memory":
        raise MemoryError
    if fault == "torch":
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")
    if fault == "disk":
        raise OSError(errno.ENOSPC, "No space left on device")
    if fault == "bug":
        raise KeyError("blocks.7")
    if str(fault).startswith("SIG"):
        faulthandler.enable()  # as a worker does
        os.kill(os.getpid(), signal.Signals[str(fault)])
    if fault == "deaf":
        time.sleep(60)


def _write_preds(folder: Path) -> None:
    with zipfile.ZipFile(folder / "preds.npz", "w", zipfile.ZIP_DEFLATED) as out:
        for name in ("ids", "class_names"):
            out.writestr(f"{name}.npy", _npy("<U1", (2,), "ab".encode("utf-32-le")))
        out.writestr("labels.npy", _npy("|u1", (2,), bytes(2)))
        for side in ("float", "quant"):
            out.writestr(f"{side}_top5.npy", _npy("|u1", (2, 1), bytes(2)))
            out.writestr(f"{side}_prob.npy", _npy("|u1", (2, 1), bytes(2)))
        out.writestr("thumb_index.npy", _npy("|u1", (12,), bytes(12)))
        out.writestr("thumbs.npy", _npy("|u1", (12, 64, 64, 3), bytes(12 * 64 * 64 * 3)))


def _npy(kind: str, shape: tuple[int, ...], data: bytes) -> bytes:
    """An array file by hand: loading NumPy would take longer than all the rest."""
    head = str({"descr": kind, "fortran_order": False, "shape": shape}).encode()
    head += b" " * (63 - (10 + len(head)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + data


if __name__ == "__main__":
    sys.exit(worker.main(Path(sys.argv[1]), runner=run, command=COMMAND))
