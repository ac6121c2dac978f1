"""One network of timm in a process of its own: quantized, with and without a planted product.

What happens is told through a pipe as it happens, so that a process that dies has told how far it
came; `measured` turns the death into a row.
"""

import resource
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from qlib.pipeline.door import Quantized

STAGES: tuple[str, ...] = ("nearest", "planted", "brecq", "own_size")
NOT_TRIED = "not tried"
RUNS = "runs"
STEPS = 2  # of BRECQ, for each unit
RANGES = {"weight_observer": "minmax", "act_observer": "minmax"}  # the quickest: none is judged
LONGEST = 300  # characters of what went wrong
# what every process needs, loaded once; the last one is PyTorch's optimizers'
LOADED = ("timm", "benchmarks._planted", "qlib.pipeline.door", "torch._dynamo")
ROOT = Path(__file__).resolve().parents[1]

Row = dict[str, Any]
Tell = Callable[[Row], object]


def measured(name: str, seconds: float, gigabytes: float, work: Callable | None = None) -> Row:
    """Measure a network in a process of its own; whatever happens there, a row comes out.

    Args:
        seconds, gigabytes: more than these the process does not get.
        work: takes the name, the pipe and gigabytes; by default `tell_all`.
    """
    context = get_context("forkserver" if sys.platform != "win32" else "spawn")
    context.set_forkserver_preload([__name__, *LOADED])
    hears, tells = context.Pipe(duplex=False)
    process = context.Process(target=work or tell_all, args=(name, tells, gigabytes), daemon=True)
    start = time.monotonic()
    process.start()
    tells.close()
    row: Row = {"network": name}
    try:
        while hears.poll(max(0.0, start + seconds - time.monotonic())):
            row |= hears.recv()
        end = f"over time: {seconds:.0f} s"
        process.kill()
    except EOFError:
        process.join(10)
        end = _death(process.exitcode)
    process.join(10)
    row["seconds"] = round(time.monotonic() - start, 1)
    return _whole(row, end)


def _death(code: int | None) -> str:
    return f"died: signal {-code}" if code and code < 0 else f"died: exit code {code}"


def _whole(row: Row, end: str) -> Row:
    """A row that says something of every stage; ``end`` ended the one that was begun last."""
    stage = row.pop("stage", STAGES[0])
    if stage in STAGES:
        row[stage] = end
    return dict.fromkeys(STAGES, NOT_TRIED) | row


def tell_all(name: str, pipe: Connection, gigabytes: float) -> None:
    """Quantize a network of timm and send columns of its row through ``pipe``, stage by stage."""
    if gigabytes:
        most = int(gigabytes * 1e9)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    import torch

    torch.set_num_threads(1)
    tell(name, pipe.send)
    pipe.send({"stage": ""})
    pipe.close()


def tell(name: str, send: Tell) -> None:
    """Columns of a network's row, sent as they are known.

    ``stage`` is what is tried next; each of `STAGES` becomes a column that says what came of it.
    """
    from benchmarks import _planted
    from benchmarks._families import as_it_is, own_images, small
    from qlib.network.blocks import find_blocks
    from qlib.network.coverage import coverage
    from qlib.network.model import QuantModel

    send({"stage": "nearest"})
    try:
        net, images, options = small(name)
    except Exception as error:
        send({"nearest": f"fault: timm: {_sentence(error)}"})
        return
    millions = sum(p.numel() for p in net.parameters()) / 1e6
    send({"input": _shape(images), "options": options, "mparams": round(millions, 2)})
    plain: list[Quantized] = []

    def nearest() -> Row:
        plain.append(_quantized(net, images, "nearest"))
        return {"nearest": RUNS, **_about(plain[0])}

    def planted() -> Row:
        twin, macs = _planted.planted(net, images[:2])
        with_product = QuantModel(twin, images[:2], find_blocks(twin)).coverage
        return {"planted": _planted.seen(plain[0].model.coverage, with_product, macs)}

    def brecq() -> Row:
        _quantized(net, images, "brecq", steps=STEPS)
        return {"brecq": RUNS}

    def at_own_size() -> Row:
        large = own_images(name)
        send({"own_input": _shape(large)})
        try:  # most networks take images of any size
            with plain[0].model.quantized(weights=False, inputs=False):
                counted = coverage(plain[0].model.net, large, plain[0].model.layers)
        except Exception:  # each refuses in its own way: build it for this size
            whole = as_it_is(name)
            counted = QuantModel(whole, large, find_blocks(whole)).coverage
        return {"own_size": RUNS, "own_share": round(counted.share, 6)}

    stages = {"nearest": nearest, "planted": planted, "brecq": brecq, "own_size": at_own_size}
    for stage, work in stages.items():
        if plain or stage in ("nearest", "brecq"):
            send({"stage": stage})
            send(_tried(stage, work))


def _shape(images: "Tensor") -> str:
    return " × ".join(map(str, images.shape[1:]))


def _tried(stage: str, work: Callable[[], Row]) -> Row:
    """What the work of a stage gives, or what came instead."""
    from qlib.core.records import InvalidSpec

    try:
        return work()
    except InvalidSpec as error:
        return {stage: f"refused: {error}"}
    except Exception as error:
        return {stage: f"fault: {_sentence(error)}"}


def _quantized(net: "nn.Module", images: "Tensor", method: str, **settings: Any) -> "Quantized":
    """The network quantized to 8 bits, after a look at its output."""
    import qlib

    q = qlib.quantize(net, images, method, 8, 8, **RANGES, **settings)
    if not bool(q(images).isfinite().all()):
        raise ArithmeticError("the quantized network gives values that are not finite")
    return q


def _about(q: "Quantized") -> Row:
    """What the quantized network says of itself."""
    model = q.model
    left_float = sorted(model.coverage.left_float.items(), key=lambda part: -part[1])
    return {
        "share": round(q.coverage, 6),
        "in_float": ", ".join(f"{part} ({macs / model.coverage.macs:.2%})"
                              for part, macs in left_float),
        "units": len(model.units()),
        "blocks": len(model.blocks),
        "cut": "in a row" if model.is_sequential else "not in a row",
        "joined": len(model.units()) - len(model.spans),
        "notes": " ".join(model.notes),
    }  # fmt: skip


def _sentence(error: Exception) -> str:
    """Kind, place in this project, and first line of an error."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if f.filename.startswith(str(ROOT / "qlib"))]
    place = f" ({Path(ours[-1].filename).relative_to(ROOT)}:{ours[-1].lineno})" if ours else ""
    words = (str(error).strip() or "no reason given").splitlines()[0]
    return f"{type(error).__name__}: {words}"[:LONGEST] + place


def good(row: Mapping[str, str]) -> bool:
    """Whether everything that was tried of a network worked."""
    fine = row["nearest"] == row["brecq"] == row["own_size"] == RUNS
    return fine and not row["planted"].startswith("not")
