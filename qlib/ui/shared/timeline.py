"""Progress of a running job, read from its events. Pure data, no widgets, no clock."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qlib.core.records import BASELINE

LEARNING = ("Load", "Calibrate", "Reconstruct", "Evaluate")
PLAIN = ("Load", "Calibrate", "Evaluate")


@dataclass(frozen=True)
class Timeline:
    """Progress of a job at its last event.

    ``stage`` counts in ``stages``; ``share`` (0 to 1) of that stage is done.

    ``round``: a method may go through all units several times. ``left``: seconds for the rest of
    this round, from units measured in it; None until one is done.
    """

    stages: tuple[str, ...]
    stage: int = 0
    share: float = 0.0
    text: str = "Starting"
    unit: str = ""
    index: int = 0
    of: int = 0
    round: int = 0
    left: float | None = None
    seconds: float = 0.0
    mb: float = 0.0


def read(events: Sequence[Mapping[str, Any]], *, learns: bool) -> Timeline:
    """The progress after the last of a job's events.

    The state after the last of a job's events; ``learns``: its method reconstructs units.
    """
    stages = LEARNING if learns else PLAIN
    if not events:
        return Timeline(stages)
    last = events[-1]
    phase = last["phase"]
    fitted = [e for e in events if e["phase"] == "reconstruct"]
    rounds = _rounds(fitted)
    position = {"seconds": last.get("t", 0.0), "mb": last.get("mb", 0.0), "round": len(rounds)}
    if phase == "reconstruct":
        return _fitting(stages, last, rounds[-1], position)
    share = _ratio(last.get("step"), last.get("steps"))
    if phase == "evaluate":
        baseline = learns and not fitted and last.get("unit") in ("float", BASELINE)
        stage = stages.index("Calibrate" if baseline else "Evaluate")
        return Timeline(stages, stage, share, f"Testing the {_who(last)}", **position)
    if phase == "calibrate":
        text = f"Choosing ranges: {last.get('note') or 'activations'}"
        if fitted:  # between two rounds
            return Timeline(stages, stages.index("Reconstruct"), 0.0, text, **position)
        return Timeline(stages, 1, _ratio(last.get("index"), last.get("of")), text, **position)
    if phase == "save":
        return Timeline(stages, len(stages) - 1, 1.0, "Writing the results", **position)
    return Timeline(stages, 0, 0.0, "Loading network and images", **position)


def _who(event: Mapping[str, Any]) -> str:
    name = event.get("unit") or "quantized"
    return {"float": "float model", BASELINE: "nearest-rounding model"}.get(name, "quantized model")


def _ratio(part: Any, whole: Any) -> float:
    return min(1.0, part / whole) if part and whole else 0.0


def _rounds(fitted: Sequence[Mapping[str, Any]]) -> list[list[tuple[int, str, float]]]:
    """Each round's units: (place, name, time of its first event). A round starts over at one."""
    rounds: list[list[tuple[int, str, float]]] = []
    for event in fitted:
        place, name = int(event.get("index") or 0), event.get("unit") or ""
        if not rounds or place < rounds[-1][-1][0]:
            rounds.append([(place, name, event.get("t", 0.0))])
        elif (place, name) != rounds[-1][-1][:2]:
            rounds[-1].append((place, name, event.get("t", 0.0)))
    return rounds


def _fitting(stages, last: Mapping[str, Any], units: list, known: dict[str, Any]) -> Timeline:
    of, inside = int(last.get("of") or 0), _ratio(last.get("step"), last.get("steps"))
    done = len(units) - 1
    left = None
    if done and of:
        each = (units[-1][2] - units[0][2]) / done
        left = max(0.0, each * (of - done) - (known["seconds"] - units[-1][2]))
    place = int(last.get("index") or done + 1)
    text = f"Unit {place} of {of}: {last.get('unit')}, step {last.get('step', 0):,}"
    if last.get("steps"):
        text += f" of {last['steps']:,}"
    share = _ratio(done + inside, of)
    where = {"unit": last.get("unit", ""), "index": place, "of": of}
    return Timeline(stages, 2, share, text, left=left, **where, **known)


def span(seconds: float) -> str:
    """A duration as text: ``8 s``, ``2 min 05 s``, ``1 h 12 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
