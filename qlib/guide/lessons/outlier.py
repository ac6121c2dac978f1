"""The outlier: why one rare value costs all others their precision."""

from qlib.guide.facts import Facts
from qlib.guide.lessons.base import Lesson, Step


def _levels(f: Facts) -> int:
    """How many levels lie between the two marks under the counts."""
    return round((f.input.high / f.input.outlier_ratio - f.input.low) / f.input.scale) + 1


LESSON = Lesson(
    title="The outlier",
    promise="Why one rare value costs all others their precision.",
    order=2,
    set={"m": "digits-vit", "q": "nearest", "b": "W4A4", "layer": "blocks.1.mlp.fc2"},
    steps=(
        Step(
            page="distributions",
            set={"b": "W8A8"},
            text=lambda f: (
                "The inputs of one layer, as counts on a logarithmic axis. Nearly all crowd "
                "around 0; a few lie far to the right. 99.9 % of them are below "
                f"{f.input.high / f.input.outlier_ratio:.2f} (the mark under the counts)."
            ),
            question="How far out is the largest value?",
            choices=(
                "Just beyond that mark",
                "Between 2 and 10 times as far",
                "More than 10 times as far",
            ),
            right=lambda f: (
                f.input.outlier_ratio < 2,
                2 <= f.input.outlier_ratio <= 10,
                f.input.outlier_ratio > 10,
            ),
            reveal=lambda f: (
                f"The largest value is {f.input.high:.2f}: {f.input.outlier_ratio:.1f} times "
                "as far as the mark. That number is called the outlier ratio."
            ),
            hide=("answer", "titles", "h-row", "try-this"),
        ),
        Step(
            page="distributions",
            text=lambda f: (
                "Now 4 bits. The blue comb shows the 16 levels, one every "
                f"{f.input.scale:.3f}. The range was chosen for the smallest squared error, "
                "so it reaches far into the empty part."
            ),
            question=(
                "How many of the 16 levels serve 99.8 % of the values (between the two marks)?"
            ),
            choices=(
                "nearly all",
                lambda f: f"about {_levels(f)}",
                "two",
            ),
            right=1,
            reveal=(
                "All the others wait for a handful of values. The few rule the step, and "
                "the many pay with a coarser grid."
            ),
            hide=("answer", "titles", "h-row", "try-this"),
        ),
        Step(
            page="distributions",
            set={"h_stage": "Rounded"},
            text=(
                "After rounding, every value stands on a level. The lower curve is the "
                "error at each value, counted in steps."
            ),
            question="How large does the error get inside the range?",
            choices=(
                "a quarter of a step",
                "half a step",
                "a whole step",
            ),
            right=1,
            reveal=lambda f: (
                "It is 0 on a level and largest midway between two: a saw-tooth. Evenly "
                "spread values would give 0.289 (root mean square). Here it is "
                f"{f.input.rmse_step:.2f}, because so many values crowd around the level at "
                "0."
            ),
            hide=("head", "titles", "h-row", "try-this"),
        ),
        Step(
            page="distributions",
            set={"b": "W2A2"},
            text=lambda f: (
                "With 2 bits there are 4 levels. If they had to reach the largest value, "
                f"{f.input.high:.2f}, one step would be "
                f"{(f.input.high - f.input.low) / 3:.2f}: almost everything would fall on 0."
            ),
            question="What became of the outlier?",
            choices=(
                "The grid still reaches it",
                "It is clipped: the grid ends before it",
            ),
            right=lambda f: (
                (3 - f.input.zero_point) * f.input.scale >= f.input.high,
                (3 - f.input.zero_point) * f.input.scale < f.input.high,
            ),
            reveal=lambda f: (
                f"The last level is {(3 - f.input.zero_point) * f.input.scale:.2f}. "
                f"{100 * f.input.clipped:.2f} % of the values are clipped: the wall of error "
                f"at the right. In return the step is {f.input.scale:.2f} for all others."
            ),
            hide=("head", "titles", "h-row", "try-this"),
        ),
        Step(
            page="distributions",
            set={"h_t": "Weight", "h_ch": True},
            text=(
                "The weights of the same layer, each row an output channel. They reach "
                "unequally far: compare the dark ends of the rows."
            ),
            question="What does one far weight cost here?",
            choices=(
                "A coarser step for the whole tensor",
                "A coarser step for its own channel",
            ),
            right=lambda f: (
                f.weight.channels == 1,
                f.weight.channels > 1,
            ),
            reveal=lambda f: (
                f"Each of the {f.weight.channels:.0f} channels has a step of its own; the "
                "other rows do not notice. The inputs of this layer share one step: there "
                "an outlier coarsens the grid of all."
            ),
            hide=("answer", "titles", "h-row", "try-this"),
        ),
        Step(
            page="distributions",
            set={"h_o": "Outliers first"},
            text=(
                "The ladder at the left is now sorted by outlier ratio. On top: the inputs "
                "of blocks.1.mlp.fc2 and blocks.3.mlp.fc2."
            ),
            question=(
                "How well do these two survive 4 bits, compared with the inputs of the "
                "layer before, blocks.1.mlp.fc1?"
            ),
            choices=(
                "better",
                "worse",
            ),
            right=lambda f: (
                max(
                    f.layers["blocks.1.mlp.fc2"].input.sqnr_db,
                    f.layers["blocks.3.mlp.fc2"].input.sqnr_db,
                )
                > f.layers["blocks.1.mlp.fc1"].input.sqnr_db,
                max(
                    f.layers["blocks.1.mlp.fc2"].input.sqnr_db,
                    f.layers["blocks.3.mlp.fc2"].input.sqnr_db,
                )
                < f.layers["blocks.1.mlp.fc1"].input.sqnr_db,
            ),
            reveal=lambda f: (
                f"Signal over error is {f.layers['blocks.1.mlp.fc2'].input.sqnr_db:.1f} and "
                f"{f.layers['blocks.3.mlp.fc2'].input.sqnr_db:.1f} dB for them, "
                f"{f.layers['blocks.1.mlp.fc1'].input.sqnr_db:.1f} dB there. The outlier "
                "ratio says where to look before any accuracy is measured."
            ),
            hide=("answer", "titles", "h-row", "try-this"),
        ),
    ),
)
