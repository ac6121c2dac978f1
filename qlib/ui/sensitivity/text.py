"""Sentences about a sensitivity profile: who is to blame, how sure that is, what it costs. Pure."""

from collections.abc import Mapping, Sequence

from qlib.plots.layers import damage, frame, split_bars
from qlib.plots.layers.damage import Profile, Row
from qlib.sensitivity import profile

HARMLESS = 0.01  # nats: below, the answers of the whole network hardly move
NAMES = {"weights": "its weights", "inputs": "what it reads", "both": "its weights and inputs"}
FLAGS = {
    "KL alone": "alone",
    "KL won back": "back",
    "Top-1 lost": "top-1",
    "Own SQNR": "own",
    "Accumulated": "accum.",
}
ALL = {"weights": "all weights", "inputs": "all inputs", "both": "everything"}


def answer(rows: Sequence[Row], mode: str, split: str) -> str:
    """The page's answer: which layers do the damage, how much, and whether that is stable."""
    mode = mode if mode in ("alone", "left_out") else "alone"
    measured = damage.measured(rows, mode, "kl", split)
    worst = [v for v in measured.worst[:3] if v.value > 0]
    if not worst or not measured.whole:
        return "The whole quantized network is measured, single layers are not yet."
    whole = damage.ends(rows, "kl")[split]
    if measured.whole < HARMLESS:
        return (
            f"**Hardly anything to blame**: the whole quantized network answers like the float "
            f"model (KL {measured.whole:.2g} nats{_agreement(whole)})."
        )
    names = _joined([f"**`{v.layer}`**" for v in worst])
    shares = _joined([frame.share(v.value, measured.whole) for v in worst])
    if mode == "alone":
        does = "does" if len(worst) == 1 else "do"
        first = f"Rounded alone, {names} {does} {shares} of the whole network's damage"
    else:
        first = f"Left alone in float, {names} wins back {shares} of the whole network's damage"
        first = first if len(worst) == 1 else first.replace("wins", "win")
    first += f" (KL {nats(measured.whole)} nats)."
    return " ".join(filter(None, (first, sides(rows), stability(rows, split))))


def _agreement(row: Row) -> str:
    """In words; nothing of features, which are no answers."""
    return "" if row["agreement"] is None else f", agreement {row['agreement']:.1f} %"


def sides(rows: Sequence[Row]) -> str:
    """A sentence on whether rounding weights or rounding inputs does the damage."""
    bars = split_bars.info(rows, metric="kl")
    weights, inputs = bars.damage("weights"), bars.damage("inputs")
    if weights is None or inputs is None:
        return ""
    if max(weights, inputs) < HARMLESS:
        return ""
    more = _exceeds(weights, inputs, bars.damage("both"))
    if inputs > 1.2 * weights:
        does, kls = "Rounding the inputs does more than rounding the weights", (inputs, weights)
    elif weights > 1.2 * inputs:
        does, kls = "Rounding the weights does more than rounding the inputs", (weights, inputs)
    else:
        does, kls = "Weights and inputs do about the same", (weights, inputs)
    return f"{does} (KL {nats(kls[0])} against {nats(kls[1])}){more}."


def _exceeds(weights: float, inputs: float, both: float | None) -> str:
    """A clause where one part alone does clearly more damage than the whole."""
    if both is None or max(weights, inputs) <= 1.05 * both:
        return ""
    # learned with rounded inputs, weights fit those and not the float ones; and the reverse
    part, other = ("inputs", "weights") if inputs >= weights else ("weights", "inputs")
    return f"; {part} alone exceed the whole, as the rounded {other} make up for part of it"


def nats(value: float) -> str:
    """A KL divergence as text: ``1.04``, ``0.13``, ``0.0031``."""
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def stability(rows: Sequence[Row], split: str = "both") -> str:
    """A warning where the two halves of the images disagree about the worst three."""
    halves = [profile.worst(rows, column=c, split=split) for c in ("kl_a", "kl_b")]
    if not all(halves) or profile.stable(rows, split=split):
        return ""
    shared = len(set(halves[0]) & set(halves[1]))
    return (
        f"**This order is not stable:** the two halves of the images share only {shared} of their "
        f"{len(halves[0])} worst layers."
    )


def errors(rows: Sequence[Row], data: str) -> str:
    """What can be said without a profile: where the error is made and where it has gathered."""
    local, gathered = (damage.compared(rows, m, "sqnr", data) for m in ("local", "accumulated"))
    if not local.known or not gathered.known:
        return (
            "This run stored no errors of single layers; it is of an older version. Make it again "
            "to see them."
        )
    one, other = local.worst[0], gathered.worst[0]
    same = "the same layer" if one.layer == other.layer else f"`{other.layer}`"
    return (
        f"**`{one.layer}`** makes the largest error of its own (SQNR {one.value:.1f} dB); most has "
        f"gathered at {same} ({other.value:.1f} dB). "
        "What that does to the answers is another question: *only this layer* measures it."
    )


def method_line(found: Profile) -> str:
    """What one bar or dot is a measurement of: the small print under the figure."""
    images = f"{found.n:,} held-out images" if found.data == "test" else "the calibration images"
    if found.data == "test" and not found.n:
        images = "held-out images"
    what, every = NAMES[found.split], ALL[found.split]
    if found.mode == "alone":
        text = f"The network in float, but for one layer: {what} rounded. Measured on {images}."
        added = sum(v.value for v in found.known) if found.metric == "kl" else 0.0
        if added and found.whole:
            text += (
                f" Alone, all layers add up to {added:.2g} nats; together they do "
                f"{found.whole:.2g}: damage does not simply add."
            )
        return text
    if found.mode == "left_out":
        return (
            f"The network with {every} rounded, but for one layer: that one stays in float, and "
            f"what is won back is shown. Measured on {images}."
        )
    if found.mode == "local":
        return f"One layer quantized alone, reading its float input; its output on {images}."
    return f"The whole network quantized; each layer's output against float, on {images}."


def ranges_line(found: Profile) -> str:
    """What the thin line at each mark spans."""
    if found.mode not in ("alone", "left_out") or not any(v.low is not None for v in found.known):
        return ""
    if found.metric == "top1":
        return "The thin line is the 95 % interval of the layer's accuracy."
    return "The thin line spans the two halves of the images."


def chosen(layer: str, rows: Sequence[Row], table: Sequence[Row], data: str) -> str:
    """All numbers of one layer, for the line under the figure (Markdown)."""
    parts = []
    for mode, words in (("alone", "alone"), ("left_out", "left in float wins back")):
        found = damage.measured(rows, mode, "kl")
        value = next((v for v in found.known if v.layer == layer), None)
        if value is not None:
            share = frame.share(value.value, found.whole) if found.whole else ""
            share = f", {share} of the whole" if share else ""
            parts.append(f"{words} {frame.amount(value.value, found)}{share}")
    for mode, words in (("local", "own error"), ("accumulated", "accumulated")):
        found = damage.compared(table, mode, "sqnr", data)
        value = next((v for v in found.known if v.layer == layer), None)
        if value is not None:
            parts.append(f"{words} {value.value:.1f} dB")
    bits = {r["tensor"]: r["bits"] for r in table if r["layer"] == layer and _rounded(r)}
    parts += [f"{tensor} {int(width)} bits" for tensor, width in bits.items()]
    return f"**`{layer}`** · " + " · ".join(parts or ["kept in float"])


def _rounded(row: Row) -> bool:
    return row["tensor"] != "output" and bool(damage.number(row, "bits"))


def evaluations(table: Sequence[Row]) -> int:
    """How often a profile measures the network: 4 times whole, twice per layer and split."""
    parts: dict[str, set[str]] = {}
    firsts = {row["unit"]: row["layer"] for row in reversed(table) if row["tensor"] != "boundary"}
    for row in filter(_rounded, table):
        # a block's boundary counts as an input of the block's first layer
        layer = firsts.get(row["unit"], "") if row["tensor"] == "boundary" else row["layer"]
        side = "weights" if row["tensor"] == "weight" else "inputs"
        parts.setdefault(layer, set()).add(side)
    return len(damage.WHOLE) + 2 * sum(1 + len(sides) for sides in parts.values())


def cost(table: Sequence[Row], seconds: Sequence[float]) -> str:
    """The price of measuring, in words; ``seconds``: of profiles of the same backbone."""
    count = evaluations(table)
    text = f"It measures the network {count} times on {profile.IMAGES} held-out images"
    if not seconds:
        return f"{text}. How long that takes here is not known yet."
    low, high = min(seconds), max(seconds)
    took = f"{low:.0f} s" if high < low + 1 else f"{low:.0f} to {high:.0f} s"
    return f"{text}. For this backbone that took {took} before."


def _joined(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def flags(layer: str, profiles: Mapping[str, Profile]) -> str:
    """Which questions a layer is flagged in, one word each, so that a narrow column holds them."""
    words = []
    for name, one in profiles.items():
        value = next((v for v in one.values if v.layer == layer), None)
        if value is not None and one.flagged(value):
            words.append(FLAGS.get(name, name))
    return ", ".join(words)
