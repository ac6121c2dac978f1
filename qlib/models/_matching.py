"""Where in a weights file a network's weights are: by its own names, wherever they stand.

A place is what stands before every one of the network's names: ``""``, ``module.``,
``state_dict_ema.module.``. Wrappers, nested dictionaries and several sets of weights in one file
are all the same question: which places have every name?
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qlib.core.records import InvalidSpec
from qlib.core.weights_key import MARK
from qlib.models._checkpoint import Checkpoint, Entry

if TYPE_CHECKING:
    from torch import Tensor

# as timm's own loader: moving averages first, then the wrappers of usual training scripts
FIRST = ("state_dict_ema", "model_ema")
WRAPPERS = ("state_dict", "model", "model_state_dict")
TOP = "."  # as a key: names that stand alone, in no dictionary inside of the file
OPTIONAL = "num_batches_tracked"  # a counter that only training reads, and some files leave out
COUNTERS = (OPTIONAL, "total_ops", "total_params", "n_averaged", "step", "num_updates")


@dataclass(frozen=True)
class Place:
    """Where the weights are: what stands before each name, and the names as the file has them.

    ``dropped``: what the network has before each name and the file has not.
    ``rivals``: other places where every name is too.
    """

    before: str
    entries: dict[str, Entry]
    dropped: str = ""
    rivals: tuple[str, ...] = ()

    @property
    def average(self) -> bool:
        """Whether its name says that these are a moving average."""
        return _is_average(self.before)


def find(own: "dict[str, Tensor]", checkpoint: Checkpoint, key: str, name: str) -> Place | None:
    """The place of a network's weights in a file; None where no place has all of them.

    Args:
        own: the network's state.
        key: of the weights to take; "" for those that timm's loader would take.
        name: what to call the network.

    Raises:
        InvalidSpec: no weights under ``key``, or several sets and none that goes first.
    """
    tensors = _under(checkpoint, key)
    for dropped in ("", _common(own)):
        names = {full.removeprefix(dropped): full for full in own}
        whole = [
            p for p, n in _places(names, tensors).items() if n and _complete(p, names, tensors)
        ]
        if whole:
            fitting = [p for p in whole if _fits(p, names, tensors, own)] or whole
            before = _preferred(fitting, checkpoint, key, name)
            entries = {
                full: tensors[before + n] for n, full in names.items() if before + n in tensors
            }
            return Place(before, entries, dropped, tuple(p for p in fitting if p != before))
    return None


def nearest(own: Iterable[str], checkpoint: Checkpoint, key: str) -> str:
    """The place that has the most of a network's names; "" where none has any."""
    own = dict.fromkeys(own, "")
    places = _places(own, _under(checkpoint, key))
    if places:
        return min(places, key=lambda p: (-places[p], _rank(p), len(p)))
    homes = Counter(entry.path[:-1] for entry in checkpoint.tensors.values())
    home = min(homes, key=lambda h: (_rank(".".join((*h, ""))), -homes[h]), default=())
    return ".".join((*home, "")) if home else ""


def is_counter(name: str, tensor: "Tensor") -> bool:
    """Whether a tensor is one of the counters that tools leave beside weights."""
    return tensor.numel() <= 1 and name.rpartition(".")[2] in COUNTERS


def _under(checkpoint: Checkpoint, key: str) -> dict[str, Entry]:
    """The tensors below a key, by their full names."""
    if not key:
        return checkpoint.tensors
    if key == TOP:
        return {n: e for n, e in checkpoint.tensors.items() if len(e.path) == 1}
    inside = {n: e for n, e in checkpoint.tensors.items() if n.startswith(f"{key.rstrip('.')}.")}
    if inside:
        return inside
    there = dict.fromkeys(e.path[0] for e in checkpoint.tensors.values() if len(e.path) > 1)
    said = f"it has them under {', '.join([*there][:6])}" if there else "it has one set alone"
    raise InvalidSpec(
        f"{checkpoint.file} has no weights under {key!r}; {said}: write one of these after the "
        f"{MARK}, or leave it out."
    )


def _places(own: dict[str, str], tensors: dict[str, Entry]) -> Counter[str]:
    """How many of the network's names each place has."""
    votes: Counter[str] = Counter()
    for full in tensors:
        starts = [0, *(m.end() for m in re.finditer(r"\.", full))]
        votes.update(full[:at] for at in starts if full[at:] in own)
    return votes


def _complete(place: str, own: dict[str, str], tensors: dict[str, Entry]) -> bool:
    return all(place + n in tensors for n in own if not n.endswith(OPTIONAL))


def _fits(
    place: str, names: dict[str, str], tensors: dict[str, Entry], own: "dict[str, Tensor]"
) -> bool:
    shapes = ((tensors.get(place + n), own[full].shape) for n, full in names.items())
    return all(entry is None or entry.value.shape == shape for entry, shape in shapes)


def _common(own: Iterable[str]) -> str:
    """The first part that all names of the network share: ``net.`` of a wrapper of one's own."""
    firsts = {name.partition(".")[0] if "." in name else "" for name in own}
    return f"{firsts.pop()}." if len(firsts) == 1 and "" not in firsts else ""


def _preferred(places: Sequence[str], checkpoint: Checkpoint, key: str, name: str) -> str:
    """The place that goes first.

    Raises:
        InvalidSpec: several, and their names do not say which.
    """
    ranks = {place: _rank(place.removeprefix(key).lstrip(".")) for place in places}
    best = [place for place in places if ranks[place] == min(ranks.values())]
    if len(best) == 1:
        return best[0]
    keys = [place.rstrip(".") for place in best]
    raise InvalidSpec(
        f"{checkpoint.file} holds {len(best)} sets of weights that fit {name}: {', '.join(keys)}; "
        f"say which, such as {checkpoint.file}{MARK}{keys[0]}."
    )


def _rank(place: str) -> tuple[int, int]:
    """Smaller goes first: averages, names that stand alone, usual wrappers, anything else."""
    first = place.partition(".")[0]
    if first in FIRST:
        return (0, FIRST.index(first))
    if _is_average(place):
        return (1, 0)
    if not place:
        return (2, 0)
    return (3, WRAPPERS.index(first)) if first in WRAPPERS else (4, 0)


def _is_average(place: str) -> bool:
    return "ema" in re.split(r"[._\-]", place.lower())
