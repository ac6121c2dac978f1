"""The cliff: why accuracy falls all at once, what breaks first, and where bits are best spent."""

from qlib.guide.lessons.base import Lesson, Step

LESSON = Lesson(
    title="The cliff",
    promise="Why accuracy falls all at once, what breaks first, and where bits are best spent.",
    order=8,
    set={"m": "digits-vit", "q": "ptmq"},
    steps=(
        Step(
            page="bits",
            set={"b": "W4A4"},
            text=lambda f: (
                "From 8 to 4 bits this network hardly loses accuracy: "
                f"{f.widths['W8A8'].top1:.1f} and {f.widths['W4A4'].top1:.1f} % of {f.n:.0f} "
                "images. It looks as if nothing had happened."
            ),
            question="How did the KL to the float network's answers change from 8 to 4 bits?",
            choices=(
                "hardly: less than twice",
                "2 to 5 times",
                "more than 5 times",
            ),
            right=lambda f: (
                f.widths["W4A4"].kl < 2 * f.widths["W8A8"].kl,
                2 * f.widths["W8A8"].kl <= f.widths["W4A4"].kl <= 5 * f.widths["W8A8"].kl,
                f.widths["W4A4"].kl > 5 * f.widths["W8A8"].kl,
            ),
            reveal=lambda f: (
                f"From {f.widths['W8A8'].kl:.4f} to {f.widths['W4A4'].kl:.4f} nats: "
                f"{f.widths['W4A4'].kl / f.widths['W8A8'].kl:.0f} times. Errors grow as bits "
                "go. An answer turns only when the error exceeds its margin: the cliff is "
                "in the accuracy, not in the errors."
            ),
            hide=("answer", "b-numbers", "b-sides", "b-mix", "findings", "b-source", "try-this"),
        ),
        Step(
            page="bits",
            set={"b": "W3A3", "b_map": "KL to float"},
            text=lambda f: (
                f"At 3 bits {f.drop:.1f} points are gone, and weights and activations both "
                "have 3 bits. Give 8 bits back to one side: W8A3 has fine weights, W3A8 "
                f"fine activations. KL at W3A3: {f.kl:.3f} nats."
            ),
            question="Which side would you give the 8 bits?",
            choices=(
                "the weights (W8A3)",
                "the activations (W3A8)",
            ),
            right=lambda f: (
                f.widths["W8A3"].kl < f.widths["W3A8"].kl,
                f.widths["W8A3"].kl >= f.widths["W3A8"].kl,
            ),
            reveal=lambda f: (
                f"W3A8: {f.widths['W3A8'].kl:.3f} nats and {f.widths['W3A8'].top1:.1f} %; "
                f"W8A3: {f.widths['W8A3'].kl:.3f} nats and {f.widths['W8A3'].top1:.1f} %. "
                "Rounding of weights was learned, and is the same for every image. Each "
                "image brings activations of its own, and one grid must suit them all."
            ),
            hide=(
                "answer",
                "b-axis",
                "b-curve",
                "b-source",
                "b-numbers",
                "b-sides",
                "b-mix",
                "findings",
                "titles",
                "try-this",
            ),
            show=("b-sides",),
        ),
        Step(
            page="bits",
            set={"b": "W3A3", "b_map": "KL to float"},
            text=(
                "The map has all pairs: down a column weights lose bits, along a row "
                "activations do. Click its cells. Where the colour changes fastest, the "
                "next bit is dearest. Now the other question: not which side, but *where* "
                "in the network."
            ),
            hide=("b-axis", "b-curve", "b-source", "b-numbers", "b-mix", "findings"),
        ),
        Step(
            page="bits",
            set={"b": "W3A3", "b_budget_weight_mb": 0},
            text=lambda f: (
                f"The network has {f.units.n} blocks that can be switched one by one. Each "
                f"was set to {f.units.bits} bits alone, with all others in float. Together "
                f"these KLs are {f.units.sum:.3f} nats."
            ),
            question="How much of that does the worst block do?",
            choices=(
                "about as much as any other",
                "a quarter to a half",
                "more than half",
            ),
            right=lambda f: (
                f.units.kl < f.units.sum / 4,
                f.units.sum / 4 <= f.units.kl <= f.units.sum / 2,
                f.units.kl > f.units.sum / 2,
            ),
            reveal=lambda f: (
                f"`{f.units.worst}` does {f.units.kl:.4f} of {f.units.sum:.4f} nats: "
                f"{100 * f.units.kl / f.units.sum:.0f} %. `{f.units.least}` does "
                f"{f.units.least_kl:.4f}. Equal bits for all treat unequal blocks alike."
            ),
            hide=(
                "answer",
                "b-axis",
                "b-curve",
                "b-source",
                "b-numbers",
                "b-sides",
                "b-mix",
                "findings",
                "try-this",
            ),
            show=("b-mix",),
        ),
        Step(
            page="bits",
            set={"b": "W3A3", "b_budget_weight_mb": 10},
            text=(
                "So spend bits where they count. The budget below allows a tenth of the way "
                "from the cheapest assignment to the dearest; a search has chosen. Read its "
                "prediction, then switch on *Try it now* and measure it. Move the budget, "
                "or edit the table: which block would you starve first?"
            ),
            hide=("b-axis", "b-curve", "b-source", "b-numbers", "b-sides", "findings"),
        ),
    ),
)
