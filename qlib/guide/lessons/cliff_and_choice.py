"""The cliff and the choice: where accuracy falls off, and how to choose a method."""

from qlib.guide.lessons.base import Lesson, Step

LESSON = Lesson(
    title="The cliff and the choice",
    promise="Where accuracy falls off, and how to choose a method without fooling yourself.",
    order=6,
    set={"m": "digits-vit", "q": "nearest"},
    steps=(
        Step(
            page="start",
            set={"b": "W8A8"},
            text=lambda f: (
                "Every weight and every activation has been rounded to the nearest of 256 "
                f"levels. The network is right on {f.top1:.1f} % of {f.n:.0f} images, with a "
                f"95 % interval from {f.top1_low:.1f} to {f.top1_high:.1f} %; in float on "
                f"{f.top1_float:.1f} %."
            ),
            question=lambda f: f"Do these {f.n:.0f} images prove that 8 bits lost something?",
            choices=(
                "Yes, a little",
                "No",
            ),
            right=lambda f: (
                f.top1_high < f.top1_float,
                f.top1_high >= f.top1_float,
            ),
            reveal=lambda f: (
                f"{f.top1_low:.1f} to {f.top1_high:.1f} % is what these images allow, and "
                f"float has {f.top1_float:.1f} %. That is no proof of equality either. The "
                f"answers agree on {f.agreement:.1f} % of the images."
            ),
            hide=("answer", "bits-figure", "try-this"),
        ),
        Step(
            page="start",
            set={"b": "W4A4"},
            text=(
                "Now 4 bits: 16 levels for every number. The curve over the bits is hidden "
                "for this step."
            ),
            question="Which is the first width that costs more than 10 points?",
            choices=(
                "4 bits",
                "3 bits",
                "2 bits",
            ),
            right=lambda f: (
                f.drop > 10,
                f.drop <= 10 and f.runs["three"].drop > 10,
                max(f.drop, f.runs["three"].drop) <= 10,
            ),
            reveal=lambda f: (
                f"Lost against float: {f.drop:.1f} points at 4 bits, "
                f"{f.runs['three'].drop:.1f} at 3, {f.runs['two'].drop:.1f} at 2. Not a "
                "slope but a cliff: each bit less halves the number of levels, so that over "
                "the same range a step becomes about twice as wide."
            ),
            runs={"three": {"b": "W3A3"}, "two": {"b": "W2A2"}},
            hide=("answer", "bits-figure", "try-this"),
        ),
        Step(
            page="start",
            set={"b": "W2A2"},
            text=lambda f: (
                f"At 2 bits only 4 levels are left: {f.lost:.0f} of {f.n:.0f} images turn "
                "wrong. Further down, the curve shows the cliff of this network, a small "
                "vision transformer. Two small convolutional networks learnt the same "
                "digits."
            ),
            question="Which network loses most at 2 bits?",
            choices=(
                "digits-vit",
                "digits-resnet",
                "digits-mobilenet",
            ),
            right=lambda f: (
                f.drop,
                f.runs["resnet"].drop,
                f.runs["mobile"].drop,
            ),
            reveal=lambda f: (
                f"Points lost on {f.n:.0f} images: {f.drop:.0f} by the transformer, "
                f"{f.runs['resnet'].drop:.0f} by the ResNet, {f.runs['mobile'].drop:.0f} by "
                f"the MobileNet. Accuracy left (95 %): {f.top1_low:.0f}–{f.top1_high:.0f}, "
                f"{f.runs['resnet'].top1_low:.0f}–{f.runs['resnet'].top1_high:.0f}, "
                f"{f.runs['mobile'].top1_low:.0f}–{f.runs['mobile'].top1_high:.0f} %. The "
                "cliff belongs to the network, not to the bits alone; why, these numbers do "
                "not say."
            ),
            runs={"resnet": {"m": "digits-resnet"}, "mobile": {"m": "digits-mobilenet"}},
            hide=("answer",),
        ),
        Step(
            page="compare",
            set={"b": "W2A2"},
            text=lambda f: (
                f"Four methods at the edge: the same network, 2 bits, the same {f.n:.0f} "
                f"test images. Rounding to nearest loses {f.drop:.0f} points. The others "
                "learn their rounding from 256 unlabelled images."
            ),
            question="How much of that loss does the best of them win back?",
            choices=(
                "less than a third",
                "a third to a half",
                "more than half",
            ),
            right=lambda f: (
                max(f.runs["ada"].won, f.runs["brecq"].won, f.runs["qdrop"].won) < f.drop / 3,
                f.drop / 3
                <= max(f.runs["ada"].won, f.runs["brecq"].won, f.runs["qdrop"].won)
                <= f.drop / 2,
                max(f.runs["ada"].won, f.runs["brecq"].won, f.runs["qdrop"].won) > f.drop / 2,
            ),
            reveal=lambda f: (
                f"Nearest {f.top1:.0f} %, AdaRound {f.runs['ada'].top1:.0f} %, BRECQ "
                f"{f.runs['brecq'].top1:.0f} %, QDrop {f.runs['qdrop'].top1:.0f} %. The next "
                "step shows the picture."
            ),
            runs={"ada": {"q": "adaround"}, "brecq": {"q": "brecq"}, "qdrop": {"q": "qdrop"}},
            hide=("answer", "scatter", "flips"),
        ),
        Step(
            page="compare",
            set={"b": "W2A2"},
            text=lambda f: (
                f"The price is time: BRECQ took {f.runs['brecq'].seconds / f.seconds:.0f} "
                "times as long as nearest. Bars are 95 % intervals. Below: which images "
                "each run lost, their pictures, and *Two runs on the same images*, where "
                "you can test any two methods, image by image."
            ),
            runs={"brecq": {"q": "brecq"}},
        ),
        Step(
            page="compare",
            set={"b": "W4A4"},
            text=(
                "The same methods at 4 bits, above the cliff. The bars are 95 % intervals; "
                "below them stands how many images each run lost and gained."
            ),
            question="Which one would you call the winner?",
            choices=(
                "BRECQ",
                "QDrop",
                "These images do not tell",
            ),
            right=lambda f: (
                f.runs["brecq"].top1_low > max(f.top1_high, f.runs["qdrop"].top1_high),
                f.runs["qdrop"].top1_low > max(f.top1_high, f.runs["brecq"].top1_high),
                max(f.runs["brecq"].top1_low, f.runs["qdrop"].top1_low)
                <= max(f.top1_high, min(f.runs["brecq"].top1_high, f.runs["qdrop"].top1_high)),
            ),
            reveal=lambda f: (
                f"Nearest {f.top1:.1f} %, BRECQ {f.runs['brecq'].top1:.1f} %, QDrop "
                f"{f.runs['qdrop'].top1:.1f} %, and nearest alone has an interval from "
                f"{f.top1_low:.1f} to {f.top1_high:.1f} %. Accuracy on these {f.n:.0f} "
                f"images does not tell them apart; KL to float may ({f.kl:.3f}, "
                f"{f.runs['brecq'].kl:.3f} and {f.runs['qdrop'].kl:.3f} nats)."
            ),
            runs={"brecq": {"q": "brecq"}, "qdrop": {"q": "qdrop"}},
            hide=("head", "titles"),
        ),
    ),
)
