"""Sentences about what noise does to a layer: the page's answer and its small print. Pure."""

import math
from collections.abc import Iterable, Sequence

from qlib.noise.profile import LayerNoise, NoiseProfile
from qlib.plots.noise import curves
from qlib.plots.shared.values import percent

IMAGES = {"test": "held-out rows", "calib": "calibration rows"}
HALF = 0.5
WIDE = 0.1  # by how much clipping has to change the expectation to be told
CAUTION = (
    "**Read published gains with care.** In the authors' script the plain 6-bit network has "
    "neither a searched clipping range nor a mean shift. So its headline jump (64.6 to 83.3 % for "
    "one ViT) is the sum of three tricks. The same script can run the four variants one by one; "
    "these bars do so for one layer. Only image classification is looked at here: detection and "
    "other tasks of the paper are out of scope."
)


def answer(found: LayerNoise, images: str) -> str:
    """What noise of the searched reach does to a layer at these bits (Markdown)."""
    name, reach = f"`{found.layer}`", curves.searched(found)
    start = f"At {found.bits} bits"
    if curves.failed(found):
        return (
            f"{start} the search found no number for {name}: its rounding makes no error, or its "
            "values are all equal. Reach 0, no noise, is shown."
        )
    if reach == 0:
        return (
            f"{start} **the search chose no noise for {name}**: of {len(found.reaches)} reaches 0 "
            f"has the least expected error of the input.{_yet(found, images)}"
        )
    share = curves.left(found, reach, images=images)
    effect = curves.effect(share)
    how = f"noise of {curves.steps(reach)}, which the search chose,"
    if effect == "even":
        return f"{start} {how} **changes next to nothing** in {name} ({IMAGES[images]})."
    if share >= 2:
        return (
            f"{start} {how} makes **{share:.1f} times the** output error of {name}: **it hurts**."
        )
    verdict = "it helps" if effect == "helps" else "it hurts, although the search expected a gain"
    return (
        f"{start} {how} leaves {name} with **{curves.change(share)}** output error on "
        f"{IMAGES[images]}: **{verdict}**."
    )


def _yet(found: LayerNoise, images: str) -> str:
    """Where every draw lowers the output's error, a search by the input's error has missed it."""
    rows = found.test if images == "test" else found.calib
    place = int(rows.mean(0).argmin())
    if rows[:, place].max() >= 1 - curves.EVEN:
        return ""
    share, reach = float(rows[:, place].mean()), float(found.reaches[place])
    return (
        f" Yet on {IMAGES[images]} the output's error would fall to {curves.times(share)} with "
        f"{curves.steps(reach)}: the search does not look at the output."
    )


def flips(
    profile: NoiseProfile, layer: str, reach: float, draw: str = curves.MEAN, images: str = "calib"
) -> str:
    """At which bits noise of this reach helps a layer and at which it hurts (Markdown).

    Without noise there is nothing to ask, so half a step stands for it.
    """
    asked = reach or HALF
    widths: dict[str, list[int]] = {"helps": [], "hurts": [], "even": []}
    for bits in profile.bits:
        share = curves.left(profile.at(layer, bits), asked, draw, images)
        widths[curves.effect(share)].append(bits)
    how = f"noise of {curves.steps(asked)}"
    if widths["helps"] and widths["hurts"]:
        return (
            f"**Changing the bits flips the sign:** at {bits_of(widths['helps'])} {how} helps this "
            f"layer, at {bits_of(widths['hurts'])} it hurts."
        )
    parts = [f"{word} at {bits_of(widths[word])}" for word in ("helps", "hurts") if widths[word]]
    if not parts:
        return f"At no bit-width does {how} change this layer's error by more than 2 %."
    even = widths["even"]
    rest = f", and changes next to nothing at {bits_of(even)}" if even else ""
    return f"For this layer {how} {parts[0]}{rest}."


def bits_of(widths: Sequence[int]) -> str:
    """Bit-widths as text: ``4 bits``, ``3, 4 and 6 bits``."""
    words = [str(w) for w in sorted(widths)]
    text = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
    return f"{text} bits"


def cell_note(found: LayerNoise, reach: float, share: float, draw: str) -> str:
    """What the picture of one cell leaves out."""
    text = "Errors are means over uniform noise."
    if draw == curves.NORMAL:
        text += " The normal draw is measured in the figure beside, not drawn here."
    expected = _expected(found, reach)
    gap = math.isfinite(share) and abs(expected - share) > WIDE * share
    if gap:
        text += (
            f" The cell has no ends. With the clipping at the ends of this grid the inputs' error "
            f"is expected to be {curves.times(expected)}."
        )
    if found.clipped > 0:
        part = percent(found.clipped)
        text += f" {part[0].upper()}{part[1:]} of the values are clipped and not in the picture."
    return text


def _expected(found: LayerNoise, reach: float) -> float:
    nearest = int(abs(found.reaches - reach).argmin())
    return float(found.predicted[nearest])


def curve_note(profile: NoiseProfile, found: LayerNoise, reach: float, draw: str) -> str:
    """What the curves over the reach are, and why they disagree where they do."""
    how = {
        curves.MEAN: f"mean of {profile.seeds} uniform draws",
        curves.NORMAL: "one normal draw of the same variance",
    }.get(draw, f"uniform draw {draw} of {profile.seeds}")
    text = (
        f"Line: {how}; band: all {profile.seeds} uniform draws. Dotted: expected error of the "
        f"inputs. Up to {profile.rows:,} rows of values. Click a mark to set the reach."
    )
    output = curves.effect(curves.left(found, reach, draw))
    inputs = curves.effect(_expected(found, reach))
    if (output, inputs) == ("helps", "hurts"):
        text += (
            " **Inputs hurt, output helped:** without noise the errors of many inputs go together "
            "and add up in the output; with it they are independent, and partly cancel."
        )
    return text


def scatter_note(images: str, draw: str) -> str:
    """How to read the scatter of all layers."""
    rows = "calibration rows" if draw == curves.NORMAL else IMAGES[images]
    return (
        f"One mark a layer, alone at these bits, on {rows}. Theory is for the inputs' rounding; "
        "the output also carries the error of the rounded weights, which noise does not touch, so "
        "marks lie nearer to 1. Click a mark to look at that layer."
    )


def without_attention(kinds: Iterable[str]) -> str:
    """What to expect of a network without attention; nothing for one that has it."""
    if "matmul" in set(kinds):
        return ""
    return (
        "This network has no attention blocks and no GELU in front of a linear layer, so expect "
        "little: after a ReLU half of the values are exactly 0, on a level, where noise can only "
        "hurt. *Who gains* shows it: marks to the left of 1."
    )


def stand_in(asked: str, shown: str, kind: str) -> str:
    """A note on why another layer is shown than the one of the sidebar."""
    why = (
        "multiplies two activations, so there is no bias to take noise off again"
        if kind == "matmul"
        else "mixes several positions, so fixed noise would not cancel at its edges"
        if kind.startswith("conv")
        else "was not measured"
    )
    return f"`{asked}` {why}. Shown instead: `{shown}`."
