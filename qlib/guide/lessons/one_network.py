"""One network, many widths: what it takes to switch bit-widths without learning anew."""

from qlib.guide.facts import Facts
from qlib.guide.lessons.base import Lesson, Step


def _six(f: Facts) -> float:
    """A network for each width from 8 to 3 bits, in MB together."""
    return sum(f.widths[f"W{b}A{b}"].weight_mb for b in range(8, 2, -1))


LESSON = Lesson(
    title="One network, many widths",
    promise="What it takes to switch bit-widths without learning anew, and what that costs.",
    order=7,
    set={"m": "digits-vit", "q": "ptmq"},
    steps=(
        Step(
            page="bits",
            set={"b": "W8A8", "run": "digits-vit_ptmq_W8A8_a6579d6614", "b_lines": "Naive switch"},
            text=lambda f: (
                "A network learned its rounding at 8 bits. Now somebody turns it down to 3 "
                "bits: the same rounding, only the steps of the grids are others. At 8 bits "
                f"it is right on {f.runs['naive'].top1:.1f} % of {f.n:.0f} images, in float "
                f"on {f.top1_float:.1f} %."
            ),
            question="How many points does it lose when it is switched to 3 bits?",
            choices=(
                "fewer than 3",
                "3 to 20",
                "more than 20",
            ),
            right=lambda f: (
                f.runs["low"].drop < 3,
                3 <= f.runs["low"].drop <= 20,
                f.runs["low"].drop > 20,
            ),
            reveal=lambda f: (
                f"{f.runs['low'].drop:.1f} points against float, down to "
                f"{f.runs['low'].top1:.1f} %. Whether a weight goes up or down was learned "
                "for small steps. At 3 bits a step is more than 30 times as wide, and the "
                "same choice moves the weight much too far."
            ),
            runs={"naive": {"b": "W8A8"}, "low": {"b": "W3A3"}},
            hide=(
                "answer",
                "b-axis",
                "b-curve",
                "b-sides",
                "b-mix",
                "titles",
                "b-source",
                "findings",
                "try-this",
            ),
            show=("b-curve",),
        ),
        Step(
            page="bits",
            set={"b": "W3A3", "b_zoom": True},
            text=lambda f: (
                "PTMQ learns one rounding for all widths from 8 to 3 bits together: at each "
                "step a low, a middle and a high width are drawn. QDrop, which only ever "
                f"saw 3 bits, reaches {f.runs['own'].top1:.1f} % there; the naive switch "
                f"{f.runs['low'].top1:.1f} %."
            ),
            question="What does the one network that has all widths reach at 3 bits?",
            choices=(
                "closer to the naive switch",
                "closer to QDrop's own network, or above it",
            ),
            right=lambda f: (
                f.top1 < (f.runs["own"].top1 + f.runs["low"].top1) / 2,
                f.top1 >= (f.runs["own"].top1 + f.runs["low"].top1) / 2,
            ),
            reveal=lambda f: (
                f"{f.top1:.1f} % (95 %: {f.top1_low:.1f} to {f.top1_high:.1f}). KL to float "
                f"tells more than accuracy here: {f.kl:.3f} nats, against "
                f"{f.runs['own'].kl:.3f} of the network made for 3 bits and "
                f"{f.runs['low'].kl:.3f} of the naive switch."
            ),
            runs={
                "own": {"q": "qdrop", "b": "W3A3"},
                "low": {"run": "digits-vit_ptmq_W8A8_a6579d6614", "b": "W3A3"},
            },
            hide=(
                "answer",
                "b-axis",
                "b-curve",
                "b-numbers",
                "b-sides",
                "b-mix",
                "titles",
                "b-source",
                "findings",
                "try-this",
            ),
            show=("b-curve", "titles"),
        ),
        Step(
            page="bits",
            set={"b": "W8A8", "b_map": "KL to float"},
            text=lambda f: (
                "Now the other end. At 8 bits there is next to nothing to lose, and a "
                "network learned for 8 bits alone keeps the answers almost exactly: KL "
                f"{f.runs['own'].kl:.5f} nats."
            ),
            question="Does the rounding that serves all widths do as well at 8 bits?",
            choices=(
                "yes, or nearly: less than twice that KL",
                "no: twice that KL or more",
            ),
            right=lambda f: (
                f.kl < 2 * f.runs["own"].kl,
                f.kl >= 2 * f.runs["own"].kl,
            ),
            reveal=lambda f: (
                f"{f.kl:.5f} against {f.runs['own'].kl:.5f} nats: "
                f"{f.kl / f.runs['own'].kl:.1f} times. One bit for each weight has to do for "
                "six grids whose fractions differ, so a small price at 8 bits is no "
                f"surprise. In accuracy it is {f.top1:.1f} against {f.runs['own'].top1:.1f} "
                "%."
            ),
            runs={"own": {"run": "digits-vit_ptmq_W8A8_a6579d6614", "b": "W8A8"}},
            hide=(
                "answer",
                "b-axis",
                "b-curve",
                "b-numbers",
                "b-sides",
                "b-mix",
                "titles",
                "b-source",
                "findings",
                "try-this",
            ),
            show=("b-sides",),
        ),
        Step(
            page="bits",
            set={"b": "W4A4"},
            text=lambda f: (
                "And memory? A network for each width from 8 to 3 bits takes "
                f"{f.widths['W8A8'].weight_mb:.2f} + {f.widths['W7A7'].weight_mb:.2f} + … + "
                f"{f.widths['W3A3'].weight_mb:.2f} MB. The one network keeps float weights, "
                "as each width rounds them anew, and a rounding bit for each."
            ),
            question="Which takes less memory?",
            choices=(
                "the one network, by half or more",
                "about the same",
                "the six networks, by half or more",
            ),
            right=lambda f: (
                2 * f.stored_mb <= _six(f),
                2 * f.stored_mb > _six(f) and f.stored_mb < 2 * _six(f),
                f.stored_mb >= 2 * _six(f),
            ),
            reveal=lambda f: (
                f"{f.stored_mb:.2f} MB, against "
                f"{_six(f):.2f} "
                "MB of all six. What it saves is the learning, and loading another network "
                "at each switch. With steps in powers of two (its setting *nested*) the "
                "8-bit integers would do."
            ),
            hide=(
                "answer",
                "b-axis",
                "b-curve",
                "b-numbers",
                "b-sides",
                "b-mix",
                "titles",
                "b-source",
                "findings",
                "try-this",
            ),
            show=("b-numbers",),
        ),
        Step(
            page="bits",
            set={"b": "W8A8", "b_zoom": True},
            text=lambda f: (
                "Press *Play* in the sidebar: the bits go down, and everything follows. One "
                f"learning run took {f.seconds:.0f} s here. Click points of the other lines "
                "to compare, and look at all of it over *Size*."
            ),
        ),
    ),
)
