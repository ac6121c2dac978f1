"""Reads weights from a file safely and puts them into a network, or says why not."""

from typing import TYPE_CHECKING

from qlib.core import weights_key
from qlib.core.records import InvalidSpec
from qlib.models import _matching, _numbers
from qlib.models._checkpoint import Checkpoint, Entry, read, type_name
from qlib.models._file_kinds import SAVE, WAYS
from qlib.models._matching import COUNTERS, TOP, Place

if TYPE_CHECKING:
    from torch import Tensor, nn

HINT = "Choose the model that they were saved from."
NAMED = 6  # of what is left out


def read_weights(weights: str) -> Checkpoint:
    """What a weights file holds; ``weights`` may end in ``#KEY``. Never runs code from the file.

    Raises:
        InvalidSpec: not there, no weights file, damaged, or nothing in it that could be weights.
    """
    return read(weights_key.parts(weights)[0])


def load_weights(
    module: "nn.Module",
    weights: str,
    name: str,
    checkpoint: Checkpoint | None = None,
    hint: str = HINT,
) -> tuple[str, ...]:
    """Copy the weights of a file into ``module``; every name and every shape must match.

    What stands before the names (``module.``, ``state_dict.``) does not matter. Where a file has
    several sets of weights that fit, moving averages go first, as with timm's own loader;
    ``FILE#KEY`` takes another one.

    Args:
        weights: the file, with or without ``#KEY``.
        name: what to call the network in sentences.
        checkpoint: the file's content, where it was read before.
        hint: what to do where the weights are of another network.

    Returns:
        notes: what was chosen, left out and converted.

    Raises:
        InvalidSpec: see `read_weights`; another architecture (the first keys that do not fit are
            named); tensors that are no floating-point weights, or not finite.
    """
    file, key = weights_key.parts(weights)
    checkpoint = checkpoint or read(file)
    own = {k: v for k, v in module.state_dict().items() if hasattr(v, "shape")}
    place = _matching.find(own, checkpoint, key, name)
    if place is None:
        raise InvalidSpec(_other_network(own, checkpoint, key, name, hint))
    source = str(file)
    state = {k: entry.value for k, entry in place.entries.items()}
    for k, tensor in state.items():
        _numbers.check_kind(place.entries[k].name, tensor, own[k], source)
    if extra := _unexpected(checkpoint, place):
        raise InvalidSpec(_not_of(source, name, [], extra, hint))
    for k, tensor in state.items():
        if tensor.shape != own[k].shape:
            raise InvalidSpec(
                f"The weights in {source} do not fit {name}: {k} has shape "
                f"{tuple(tensor.shape)} in the file and {tuple(own[k].shape)} in the network. "
                f"{hint}"
            )
    ready, widened = _numbers.converted(module, state, source)
    module.load_state_dict(ready, strict=False)
    return (*_chosen(place, file.name), *widened, *_left_out(checkpoint, place, file.name))


# ---- what does not fit --------------------------------------------------------------------------


def _other_network(
    own: "dict[str, Tensor]", checkpoint: Checkpoint, key: str, name: str, hint: str
) -> str:
    """Why a file's weights are not those of a network."""
    if not checkpoint.tensors:
        return _no_weights(checkpoint)
    before = _matching.nearest(own, checkpoint, key)
    inside = {
        n.removeprefix(before): e for n, e in checkpoint.tensors.items() if n.startswith(before)
    }
    shared = [k for k in own if k in inside]
    for k in shared:
        _numbers.check_kind(inside[k].name, inside[k].value, own[k], str(checkpoint.file))
    homes = {inside[k].path[:-1] for k in shared or inside}
    missing = [k for k in own if k not in inside and not k.endswith(_matching.OPTIONAL)]
    extra = [k for k, e in inside.items() if k not in own and _in_the_way(k, e, homes)]
    return _not_of(str(checkpoint.file), name, missing, extra, hint)


def _no_weights(checkpoint: Checkpoint) -> str:
    file, others = checkpoint.file, checkpoint.others
    if checkpoint.numbered:
        return (
            f"{file} has its tensors under numbers, and a network's weights need their names; save "
            f"its state_dict: {SAVE}."
        )
    whole = next((e for e in others if "." in type_name(e.value)), None)
    if whole is not None and type_name(whole.value).startswith("numpy."):
        return f"{file} is {WAYS['numpy']}."
    if whole is not None:
        return (
            f"{file} holds Python objects and no tensors by name ({whole.name}: "
            f"{type_name(whole.value)}); save the network's state_dict: {SAVE}."
        )
    if not others:
        return f"{file} holds nothing; save the network's state_dict: {SAVE}."
    return (
        f"{file} holds no tensors by name, but {_listed(others, {()})}; save the network's "
        f"state_dict: {SAVE}."
    )


def _unexpected(checkpoint: Checkpoint, place: Place) -> list[str]:
    """Names beside the network's own that it does not have, but for counters."""
    used = {entry.name for entry in place.entries.values()}
    homes = {entry.path[:-1] for entry in place.entries.values()}
    return [
        n.removeprefix(place.before)
        for n, e in checkpoint.tensors.items()
        if n not in used and n.startswith(place.before) and _in_the_way(n, e, homes)
    ]


def _in_the_way(name: str, entry: Entry, homes: set[tuple[str, ...]]) -> bool:
    return entry.path[:-1] in homes and not _matching.is_counter(name, entry.value)


def _not_of(source: str, name: str, missing: list[str], unexpected: list[str], hint: str) -> str:
    return (
        f"The weights in {source} are not of {name}: {_first('missing', missing)}, "
        f"{_first('unexpected', unexpected)}. {hint}"
    )


def _first(what: str, keys: list[str]) -> str:
    if not keys:
        return f"nothing {what}"
    more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    return f"{what} {keys[0]}{more}"


# ---- what is told -------------------------------------------------------------------------------


def _chosen(place: Place, file: str) -> list[str]:
    """Which weights were taken, where there was something to choose or to strip."""
    notes = []
    where = place.before.rstrip(".")
    if place.rivals:
        others = [f"{file}{weights_key.MARK}{p.rstrip('.') or TOP}" for p in place.rivals]
        what = "a moving average of the weights" if place.average else "one of several sets"
        notes.append(
            f"{file}: the weights under {where or TOP!r} were taken ({what}); others that fit are "
            f"{' and '.join(others)}."
        )
    elif where:
        average = "a moving average of the weights stands" if place.average else "the weights stand"
        notes.append(f"{file}: {average} under {where!r}, which is before every name.")
    if place.dropped:
        notes.append(f"{file}: its names lack the network's {place.dropped!r} in front.")
    return notes


def _left_out(checkpoint: Checkpoint, place: Place, file: str) -> list[str]:
    used = {entry.name for entry in place.entries.values()}
    rest = [entry for name, entry in checkpoint.tensors.items() if name not in used]
    rivals = tuple(place.rivals)
    rest = [e for e in rest if not any(p and e.name.startswith(p) for p in rivals)]
    rest += checkpoint.others
    if not rest:
        return []
    shared = {entry.path[:depth] for entry in place.entries.values()
              for depth in range(len(entry.path))}  # fmt: skip
    return [f"{file}: left out {_listed(rest, shared)}."]


def _listed(entries: list[Entry], shared: set[tuple[str, ...]]) -> str:
    """Entries in words, those of one dictionary together: ``optimizer (120), epoch (int)``."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(_group(entry, shared), []).append(entry)
    words = [f"{name} ({_what(members)})" for name, members in groups.items()]
    more = f" and {len(words) - NAMED} more" if len(words) > NAMED else ""
    return ", ".join(words[:NAMED]) + more


def _group(entry: Entry, shared: set[tuple[str, ...]]) -> str:
    """The first key that leads away from the weights; of those beside them, the first word."""
    depth = next((d for d in range(len(entry.path)) if entry.path[:d] not in shared), None)
    if depth is not None:
        return entry.path[depth - 1]
    first, last = entry.path[-1].partition(".")[0], entry.path[-1].rpartition(".")[2]
    return last if last in COUNTERS else first


def _what(members: list[Entry]) -> str:
    if len(members) > 1:
        return f"{len(members)} values"
    value = members[0].value
    return f"{tuple(value.shape)} tensor" if hasattr(value, "shape") else type_name(value)
