"""How long each of twelve visitors of one server waits while a job runs.

``python -m benchmarks.visitors [--visitors 12] [--seconds 120]``. Each visitor holds a session of
its own, opens a page with its own view, looks at it for some seconds, and goes on to the next one,
while one reconstruction job runs. A visit lasts from the request until the server has run the page
to its end, measured where a browser would stand: on the app's own WebSocket. Drawing in the browser
is not in it (see ``benchmarks.pages``).
"""

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from benchmarks._table import markdown
from qlib import jobs, store
from qlib.core.records import RunSpec
from qlib.core.specs import checked
from tests.browser_kit import Server, serving

PAGES = ("start", "distributions", "sensitivity", "reconstruction", "compare", "run")
MODELS = ("digits-vit", "digits-resnet", "digits-mobilenet")
METHODS = ("nearest", "adaround", "brecq", "qdrop")
END = "script_finished"
LOOKS = (2.0, 6.0)  # seconds that a visitor looks at a page
JOB = RunSpec("digits-vit", "digits", "qdrop", 3, 3, seed=7, settings={"steps": 20_000})


@dataclass
class Seen:
    """What the visitors met: seconds of each visit by page, and every error in words."""

    visits: dict[str, list[float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)


def main() -> None:
    """Measure and print one row a page, the errors, and the app's memory."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.visitors", description=__doc__)
    parser.add_argument("--visitors", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as home, serving(Path(home), store.demo_dir()) as server:
        asyncio.run(_visit(server, Seen(), 1, 5, args.seed))  # a fresh server reads its folders
        before = _memory(server)
        job = jobs.submit(checked(JOB), server.runs)
        seen = Seen()
        asyncio.run(_visit(server, seen, args.visitors, args.seconds, args.seed))
        state = jobs.status(job.key, server.runs).state
        print(_report(seen, args, before, _memory(server), state))


async def _visit(server: Server, seen: Seen, visitors: int, seconds: float, seed: int) -> None:
    end = time.perf_counter() + seconds
    await asyncio.gather(
        *(_visitor(server, seen, end, random.Random(seed + i)) for i in range(visitors))
    )


async def _visitor(server: Server, seen: Seen, end: float, chance: random.Random) -> None:
    address = f"ws://127.0.0.1:{server.port}/_stcore/stream"
    await asyncio.sleep(chance.uniform(0, LOOKS[0]))
    async with connect(address, subprotocols=[Subprotocol("streamlit")], max_size=None) as socket:
        while time.perf_counter() < end:
            page, query = chance.choice(PAGES), _view(chance)
            start = time.perf_counter()
            seen.errors += [f"{page}?{query}: {e}" for e in await _open(socket, page, query)]
            seen.visits.setdefault(page, []).append(time.perf_counter() - start)
            await _look(socket, chance.uniform(*LOOKS))


def _view(chance: random.Random) -> str:
    bits = chance.choice((4, 3, 2))
    model, method = chance.choice(MODELS), chance.choice(METHODS)
    return f"m={model}&q={method}&b=W{bits}A{bits}"


async def _open(socket: ClientConnection, page: str, query: str) -> list[str]:
    """Ask for a page and read until its script has ended; the exceptions that it showed."""
    ask = BackMsg()
    ask.rerun_script.page_name, ask.rerun_script.query_string = page, query
    await socket.send(ask.SerializeToString())
    errors, started = [], False
    async for raw in socket:
        if isinstance(raw, str):  # Streamlit speaks in bytes
            continue
        message = ForwardMsg.FromString(raw)
        kind = message.WhichOneof("type")
        started = started or kind == "new_session"
        if kind == "page_not_found":
            errors.append("page not found")
        if kind == "delta" and message.delta.new_element.WhichOneof("type") == "exception":
            errors.append(message.delta.new_element.exception.message)
        done = (
            kind == "script_finished" and message.script_finished == message.FINISHED_SUCCESSFULLY
        )
        if started and done:
            return errors
    return [*errors, "the connection was closed"]


async def _look(socket: ClientConnection, seconds: float) -> None:
    """Stay on the page; what the server sends meanwhile is read, as a browser would."""
    try:
        async with asyncio.timeout(seconds):
            async for _ in socket:
                pass
    except TimeoutError:
        pass


def _memory(server: Server) -> float:
    return psutil.Process(server.pid).memory_info().rss / 1e6


def _report(seen: Seen, args: argparse.Namespace, before: float, after: float, job: str) -> str:
    every = [s for found in seen.visits.values() for s in found]
    rows = [_row(page, seen.visits[page]) for page in PAGES if page in seen.visits]
    lines = [
        markdown([*rows, _row("all", every)]),
        f"\n{args.visitors} visitors, {args.seconds:g} s, seed {args.seed}; job at the end: {job}; "
        f"memory of the app: {before:.0f} MB before, {after:.0f} MB after",
        f"{len(seen.errors)} errors",
        *dict.fromkeys(seen.errors),
    ]
    return "\n".join(lines)


def _row(page: str, seconds: list[float]) -> dict[str, object]:
    return {
        "page": page,
        "visits": len(seconds),
        "median, s": f"{statistics.median(seconds):.2f}",
        "95th percentile, s": f"{sorted(seconds)[int(0.95 * (len(seconds) - 1))]:.2f}",
        "slowest, s": f"{max(seconds):.2f}",
    }


if __name__ == "__main__":
    main()
