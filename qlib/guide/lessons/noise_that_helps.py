"""Noise that helps: why fixed noise before rounding can remove error."""

from qlib.guide.lessons.base import Lesson, Step

LESSON = Lesson(
    title="Noise that helps",
    promise=(
        "Why a fixed random number before rounding can remove error, and when it only adds some."
    ),
    order=5,
    set={
        "m": "digits-vit",
        "q": "nearest",
        "b": "W4A4",
        "layer": "blocks.0.mlp.fc2",
        "n_bits": 4,
        "n_reach": 0.5,
    },
    steps=(
        Step(
            page="noisyquant",
            text=(
                "A value exactly midway between two levels has the worst luck: rounding "
                "moves it by half a step, a squared error of step²/4. Now add a random "
                "number between −½ and ½ step before rounding, and take it off again behind."
            ),
            question="What is its squared error then, on average?",
            choices=(
                "the same, step²/4",
                "a third of that, step²/12",
                "twice that, step²/2",
            ),
            right=1,
            reveal=(
                "step²/12. With the noise it may land anywhere in the cell, so its error is "
                "sometimes small, sometimes large, and never above half a step. That beats "
                "being half a step off every time."
            ),
            hide=(
                "answer",
                "titles",
                "n-cell-box",
                "n-curve-box",
                "n-scatter-box",
                "n-numbers",
                "n-tricks-part",
                "n-values-box",
                "n-data",
                "t-box",
                "try-this",
                "findings",
            ),
        ),
        Step(
            page="noisyquant",
            text=(
                "Now a value that sits exactly on a level. Rounding alone does nothing to "
                "it: its error is 0. The same noise of ±½ step is added, and taken off "
                "again behind."
            ),
            question="What is its squared error now, on average?",
            choices=(
                "still 0, as the noise is taken off again",
                "step²/12, like everywhere else in the cell",
                "step²/4",
            ),
            right=1,
            reveal=(
                "step²/12 too: noise of ±½ step makes the error the same at every place. It "
                "trades an error that depends on the place for one that does not. Midway "
                "between levels it wins, on levels it loses."
            ),
            hide=(
                "answer",
                "titles",
                "n-cell-box",
                "n-curve-box",
                "n-scatter-box",
                "n-numbers",
                "n-tricks-part",
                "n-values-box",
                "n-data",
                "t-box",
                "try-this",
                "findings",
            ),
        ),
        Step(
            page="noisyquant",
            text=(
                "So it depends on where a layer's values lie. This one reads what a GELU "
                "gives it, at 4 bits. The filled shape shows its values in the cell: 0 is "
                "on a level, ½ is midway. In the green parts the noise helps, in the "
                "hatched part it hurts."
            ),
            question="What does noise of ±½ step do to the error of this layer's output?",
            choices=(
                "it helps",
                "next to nothing",
                "it hurts",
            ),
            right=lambda f: (
                f.noise.b4.half_test < 0.98,
                0.98 <= f.noise.b4.half_test <= 1.02,
                f.noise.b4.half_test > 1.02,
            ),
            reveal=lambda f: (
                f"{f.noise.b4.half_test:.2f} times the error is left on held-out rows. "
                f"Rounding alone costs {f.noise.b4.rounding:.2f} times step²/12 in its "
                "input: more than noise would, as many values lie towards the middle "
                "between levels."
            ),
            hide=(
                "answer",
                "n_reach",
                "titles",
                "n-curve-box",
                "n-scatter-box",
                "n-numbers",
                "n-tricks-part",
                "n-values-box",
                "n-data",
                "t-box",
                "try-this",
                "findings",
            ),
            show=("n-curve-box", "n-numbers"),
        ),
        Step(
            page="noisyquant",
            set={"n_bits": 6},
            text=(
                "Two bits more: the steps are a quarter as wide, and every level has moved. "
                "Layer and values are the same as before; the noise is ±½ of the new step."
            ),
            question="And what does the noise do at 6 bits?",
            choices=(
                "it helps again",
                "next to nothing",
                "it hurts now",
            ),
            right=lambda f: (
                f.noise.b6.half_test < 0.98,
                0.98 <= f.noise.b6.half_test <= 1.02,
                f.noise.b6.half_test > 1.02,
            ),
            reveal=lambda f: (
                f"{f.noise.b6.half_test:.2f} times the error, against "
                f"{f.noise.b4.half_test:.2f} at 4 bits. Rounding alone costs only "
                f"{f.noise.b6.rounding:.2f} times step²/12 here: the bulk now lies nearer to "
                "levels. The same layer can gain at one bit-width and lose at another."
            ),
            hide=(
                "answer",
                "n_reach",
                "titles",
                "n-cell-box",
                "n-curve-box",
                "n-scatter-box",
                "n-numbers",
                "n-tricks-part",
                "n-values-box",
                "n-data",
                "t-box",
                "try-this",
                "findings",
            ),
            show=("n-cell-box", "n-curve-box", "n-numbers"),
        ),
        Step(
            page="noisyquant",
            set={"n_bits": 6},
            text=lambda f: (
                f"All {f.noise.count.b6.of} linear layers of this network at 6 bits, each "
                "alone with noise of ±½ step. Count as helped what loses more than 2 % of "
                "its output's error on held-out rows."
            ),
            question="How many layers does the noise help?",
            choices=(
                "most of them",
                "less than half",
                "none",
            ),
            right=lambda f: (
                f.noise.count.b6.helped >= f.noise.count.b6.of / 2,
                0 < f.noise.count.b6.helped < f.noise.count.b6.of / 2,
                f.noise.count.b6.helped == 0,
            ),
            reveal=lambda f: (
                f"It helps {f.noise.count.b6.helped} and hurts {f.noise.count.b6.hurt}; the "
                "others hardly change. So a search chooses the reach layer by layer, and 0, "
                f"no noise at all, is a legal winner: here in {f.noise.count.b6.none} of "
                f"{f.noise.count.b6.of} layers."
            ),
            hide=(
                "answer",
                "n_reach",
                "titles",
                "n-cell-box",
                "n-curve-box",
                "n-values-box",
                "n-scatter-box",
                "n-numbers",
                "n-tricks-part",
                "n-data",
                "t-box",
                "try-this",
                "findings",
            ),
            show=("n-scatter-box",),
        ),
        Step(
            page="noisyquant",
            text=(
                "Published jumps compare a plain network with one that has three tricks at "
                "once: a searched clipping range, a constant shift of the mean, and noise. "
                "Back to 4 bits and our layer: the three one after the other."
            ),
            question="Which of the three takes most off this layer's error?",
            choices=(
                "the clipping range",
                "the shift",
                "the noise",
            ),
            right=lambda f: (
                f.noise.b4.plain_test - f.noise.b4.clip_test,
                f.noise.b4.clip_test - f.noise.b4.shift_test,
                f.noise.b4.shift_test - f.noise.b4.noise_test,
            ),
            reveal=lambda f: (
                "Output error in % of its energy, held-out: plain "
                f"{f.noise.b4.plain_test:.2f}, clip {f.noise.b4.clip_test:.2f}, shift "
                f"{f.noise.b4.shift_test:.2f}, noise {f.noise.b4.noise_test:.2f}. Before you "
                "believe a gain, ask what the baseline was given."
            ),
            hide=(
                "answer",
                "titles",
                "n-cell-box",
                "n-curve-box",
                "n-values-box",
                "n-scatter-box",
                "n-numbers",
                "t-box",
                "n-tricks-box",
                "n-data",
                "try-this",
                "findings",
            ),
            show=("n-tricks-box",),
        ),
        Step(
            page="noisyquant",
            set={"layer": "blocks.3.mlp.fc2"},
            text=lambda f: (
                "Your turn: move the reach, step through the bits, change the layer. In "
                "this one the search looks at the layer's input and chooses "
                f"{f.noise.b4.closed_form:.2f}; yet at ±½ step {f.noise.b4.half_test:.2f} "
                "times the output's error is left. Which of the two would you trust?"
            ),
        ),
    ),
)
