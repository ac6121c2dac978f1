"""The selection of the Bits page: a network, a line of bit-widths, one pair of widths on it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qlib import jobs, store
from qlib.core import catalogue
from qlib.core.records import BITS, InvalidSpec, RunSpec
from qlib.core.scores import accurate
from qlib.plots.bits.width_lines import Line, line_key, line_title, lines_of
from qlib.plots.bits.width_map import Pair
from qlib.store import Finished
from qlib.ui.shared import address, comparable, context, resolve, state

WIDTHS = tuple(sorted(BITS, reverse=True))
FIRST: Pair = (4, 4)
BAD = ("failed", "crashed")
LIVE = ("queued", "running", "cancelling")


@dataclass(frozen=True)
class Track:
    """One line of the page: a stored network with many widths, or a run for each width.

    ``cells``: metrics by (bits of weights, bits of activations); ``runs``: the run of each, which
    is the same one where ``one``. ``states``: jobs of other cells, by `width_map.STATES`.
    """

    key: str
    title: str
    cells: Mapping[Pair, Mapping[str, Any]]
    runs: Mapping[Pair, Finished]
    one: bool = False
    states: Mapping[Pair, str] = field(default_factory=dict)

    @property
    def first(self) -> Finished:
        """The first run of the line."""
        return next(iter(self.runs.values()))

    @property
    def spec(self) -> RunSpec:
        """The specification of the line's first run."""
        return self.first.record.spec

    @property
    def method(self) -> str:
        """The key of the line's method."""
        return self.spec.method

    @property
    def equal(self) -> list[int]:
        """Widths of weights and activations alike, most bits first."""
        return sorted((w for w, a in self.cells if w == a), reverse=True)

    @property
    def stored_mb(self) -> float:
        """All its widths together, in MB: one stored network, or the sum of the runs' weights."""
        if self.one:
            known = self.first.record.metrics.get("stored_mb")
            return known if known else max(m["weight_mb"] for m in self.cells.values())
        return sum(self.cells[b, b]["weight_mb"] for b in self.equal)

    def near(self, pair: Pair) -> Finished:
        """The run of a cell, or of the measured one next to it."""
        apart = lambda p: (abs(p[0] - pair[0]) + abs(p[1] - pair[1]), -p[0])  # noqa: E731
        return self.runs[min(self.runs, key=apart)]


@dataclass(frozen=True)
class Shown:
    """What the page shows: the chosen line and pair of bits, among all lines of a network.

    What the page shows; ``left_out``: runs of the backbone made under other conditions.
    """

    model: str
    tracks: Mapping[str, Track]
    track: Track
    pair: Pair
    siblings: tuple[Finished, ...]
    left_out: int = 0
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The chosen pair as text: ``W4A4``."""
        return "W{}A{}".format(*self.pair)

    @property
    def cell(self) -> Mapping[str, Any] | None:
        """The chosen pair's metrics, where it was measured."""
        return self.track.cells.get(self.pair)

    @property
    def entry(self) -> Finished:
        """The run that the chosen pair belongs to, or the one next to it."""
        return self.track.near(self.pair)

    @property
    def own(self) -> bool:
        """Whether the files of `entry` are about the chosen pair, and not about another one."""
        spec = self.entry.record.spec
        return self.pair == (spec.weight_bits, spec.act_bits)

    @property
    def many(self) -> Track | None:
        """The network with many widths, if there is one: the chosen one, or the first."""
        return _first_many((self.track, *self.tracks.values()))

    def lines(self, keys: Iterable[str]) -> tuple[Line, ...]:
        """Lines as figures draw them, of the tracks with these keys."""
        return lines_of(self.records(keys), state.titles(), self.failed)

    def records(self, keys: Iterable[str]) -> list:
        """The runs of these tracks, each once."""
        found = {e.key: e.record for k in keys for e in self.tracks[k].runs.values()}
        return list(found.values())

    @property
    def failed(self) -> dict[str, list[int]]:
        """Track → equal widths whose job did not finish."""
        bad = {k: [w for (w, a), s in t.states.items() if w == a and s == "failed"]
               for k, t in self.tracks.items()}  # fmt: skip
        return {k: sorted(v, reverse=True) for k, v in bad.items() if v}


def _first_many(tracks: Iterable[Track]) -> Track | None:
    """The first network with many widths that does not show what goes wrong otherwise."""
    return next((t for t in tracks if t.one and not catalogue.is_contrast(t.spec)), None)


def find() -> Shown | None:
    """The selection that the address asks for.

    What the address asks for, or what comes nearest; None without any run.
    """
    entries = [e for e in context.entries() if accurate(e.record.metrics)]
    asked = address.asked()
    named = {k: v for k, v in asked.items() if k in ("m", "q", "run")}
    choice = resolve.choose(named, entries, state.titles())
    if choice is None:
        return None
    model = choice.spec.model
    siblings = tuple(e for e in entries if e.record.spec.model == model)
    here = choice.entry if asked.get("run") == choice.entry.key else None
    tracks, left = tracks_of(siblings, here)
    track = _track(tracks, choice, asked)
    pair, note = _pair(asked.get("b"), choice.entry if here else None)
    return Shown(model, tracks, track, pair, siblings, left, (*choice.notes, *note))


def _track(tracks: Mapping[str, Track], choice: resolve.Choice, asked: Mapping[str, str]) -> Track:
    """That of the run or the method of the address; else the network with many widths."""
    of_run = line_key(choice.entry.record)
    if "run" in asked and of_run in tracks:
        return tracks[of_run]
    if "q" in asked or "run" in asked:
        same = [t for t in tracks.values() if t.method == choice.spec.method]
        if same:
            return min(same, key=lambda t: t.key != choice.spec.method)
    return _first_many(tracks.values()) or next(iter(tracks.values()))


def _pair(wanted: str | None, entry: Finished | None) -> tuple[Pair, list[str]]:
    """The widths of the address, of its run, or `FIRST`; and a note where they are none."""
    label = resolve.label(wanted)
    if label is None:
        spec = entry.record.spec if entry else None
        pair = (spec.weight_bits, spec.act_bits) if spec else FIRST
        note = f"There are no bits `{wanted}`. Shown instead: W{pair[0]}A{pair[1]}."
        return pair, [note] if wanted else []
    w, a = (int(x) for x in label[1:].split("A"))
    kept = min(max(w, min(BITS)), max(BITS)), min(max(a, min(BITS)), max(BITS))
    said = f"There are no bits {label} here. Shown instead: W{kept[0]}A{kept[1]}."
    return kept, [said] if kept != (w, a) else []


# ---- tracks ----------------------------------------------------------------------------------


def tracks_of(
    siblings: Sequence[Finished], here: Finished | None = None
) -> tuple[dict[str, Track], int]:
    """The lines of one backbone: many widths first, then the baseline, then by name.

    Only runs on the same images under the same conditions as the run that is looked at (or the
    preferred one); of several for one cell the preferred one. Also how many were left out.
    """
    order = [here, *siblings] if here else list(siblings)
    reference = order[0].record
    fair = [e for e in order if not comparable.unlike([reference, e.record])]
    cells: dict[str, dict[Pair, Mapping[str, Any]]] = {}
    runs: dict[str, dict[Pair, Finished]] = {}
    titles = state.titles()
    named: dict[str, str] = {}
    for entry in fair:
        key = line_key(entry.record)
        if entry.record.bit_widths and key in cells:
            continue
        named.setdefault(key, line_title(entry.record, titles))
        for pair, found in measured(entry).items():
            cells.setdefault(key, {}).setdefault(pair, found)
            runs.setdefault(key, {}).setdefault(pair, entry)
    states, made = _states(reference.spec), {}
    many = {key for key in cells if next(iter(runs[key].values())).record.bit_widths}
    for key in sorted(cells, key=lambda k: (k not in many, *catalogue.baseline_first(k))):
        made[key] = Track(key, named[key], cells[key], runs[key], key in many, states.get(key, {}))
    return made, len(siblings) - len({e.key for e in fair})


def measured(entry: Finished) -> dict[Pair, Mapping[str, Any]]:
    """All pairs of widths that a run measured; numbers of a run are added to its rows."""
    record = entry.record
    own = (record.spec.weight_bits, record.spec.act_bits)
    shared = {k: record.metrics[k] for k in ("top1_float", "n") if k in record.metrics}
    by_pair: dict[Pair, Mapping[str, Any]] = {own: record.metrics}
    for row in record.bit_widths:
        by_pair[int(row["weight_bits"]), int(row["act_bits"])] = shared | row
    return by_pair


def _states(reference: RunSpec) -> dict[str, dict[Pair, str]]:
    """Track → pair → what has become of its job, of the reference's backbone and images."""
    found: dict[str, dict[Pair, str]] = {}
    try:
        known = jobs.list_jobs(store.runs_dir())
    except InvalidSpec:
        return found
    for job in known:
        spec = job.spec
        same = (spec.model, spec.data, spec.analysis) == (reference.model, reference.data, "")
        if same and job.state in (*BAD, *LIVE):
            told = "failed" if job.state in BAD else job.state
            found.setdefault(catalogue.line(spec), {})[spec.weight_bits, spec.act_bits] = told
    return found


# ---- changes ---------------------------------------------------------------------------------


def go(pair: Pair) -> None:
    """Choose another pair of widths. For callbacks."""
    address.put({"b": f"W{pair[0]}A{pair[1]}"})


def take(track: Track, known: Sequence[Finished]) -> None:
    """Choose another line. ``known``: all runs. For callbacks."""
    address.put(place(track, known))


def place(track: Track, known: Sequence[Finished]) -> dict[str, str | None]:
    """The address parameters of a line.

    What an address says of a line: its method, and its run where that alone is not enough.
    """
    method, entry = track.method, track.first
    run = None
    if track.one:
        model = entry.record.spec.model
        plain = resolve.choose({"m": model, "q": method}, known, {})
        run = entry.key if plain is None or plain.entry.key != entry.key else None
    return {"q": method, "run": run}
