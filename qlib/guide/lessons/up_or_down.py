"""Up or down: why moving weights away from their nearest level can make a network better."""

from qlib.guide.lessons.base import Lesson, Step

LESSON = Lesson(
    title="Up or down?",
    promise="Why moving weights away from their nearest level can make a network better.",
    order=4,
    set={"m": "digits-vit", "q": "qdrop", "b": "W3A3", "layer": "blocks.0.mlp.fc2"},
    steps=(
        Step(
            page="reconstruction",
            text=(
                "Every weight lies between two levels of a grid. Rounding to nearest takes "
                "the closer one. QDrop learned for each weight of this network whether to "
                "go up or down; the layer is `blocks.0.mlp.fc2`."
            ),
            question=lambda f: (
                f"How many of its {f.weight.params:,.0f} weights ended away from the nearest level?"
            ),
            choices=(
                "1 in 1,000",
                lambda f: f"about {100 * f.weight.flipped:.0f} %",
                "half of them",
            ),
            right=1,
            reveal=lambda f: (
                f"{f.weight.flipped * f.weight.params:,.0f} weights moved; the others stay "
                "at their nearest level. The bars of the next step show every layer."
            ),
            hide=("answer", "titles", "r_arrows", "r_numbers", "r_flips", "r_soft", "r_step"),
        ),
        Step(
            page="reconstruction",
            text=(
                "Each of these weights now stands further from its trained value. The bars "
                "at the upper left count them, layer by layer."
            ),
            question="What happened to the squared error of this layer's weights?",
            choices=(
                "It became smaller",
                "It stayed the same",
                "It became larger",
            ),
            right=lambda f: (
                f.weight.mse < f.weight.mse_nearest,
                f.weight.mse == f.weight.mse_nearest,
                f.weight.mse > f.weight.mse_nearest,
            ),
            reveal=lambda f: (
                f"{f.weight.mse / f.weight.mse_nearest:.1f} times what nearest rounding "
                "gives. It cannot be otherwise: on the same grid no level is closer than "
                "the nearest, so every move costs."
            ),
            hide=("answer", "titles", "r_arrows", "r_numbers", "r_soft", "r_step"),
        ),
        Step(
            page="reconstruction",
            text=lambda f: (
                "What counts is not the weights but what the layer computes with them, deep "
                f"inside the quantized network, on {f.n:.0f} images that no method has seen."
            ),
            question=(
                "Against the network rounded to nearest: what happened to the error of this "
                "layer's output?"
            ),
            choices=(
                "It grew too",
                "It fell",
            ),
            right=lambda f: (
                f.output.acc_mse_test >= f.runs["near"].output.acc_mse_test,
                f.output.acc_mse_test < f.runs["near"].output.acc_mse_test,
            ),
            reveal=lambda f: (
                f"It is {f.output.acc_mse_test / f.runs['near'].output.acc_mse_test:.2f} "
                "times what it was. An output is a sum over many weights: errors that "
                "cancel in the sum do no harm. Step on to see all layers as arrows."
            ),
            runs={"near": {"q": "nearest"}},
            hide=("answer", "titles", "r_arrows", "r_numbers", "r_soft", "r_step"),
        ),
        Step(
            page="reconstruction",
            text=(
                "The arrows: to the right is a larger weight error, down a smaller output "
                "error. How does a weight choose? While it learns it rounds up by a part h: "
                "0 is down, 1 is up. At the first step the values of h are spread evenly; "
                "the picture of h is hidden for this step."
            ),
            question="Where is h for most weights of this block at the last step?",
            choices=(
                "Near one half",
                "Spread as evenly as at first",
                "At 0 or at 1",
            ),
            right=2,
            reveal=(
                "After the warm-up a penalty makes everything in between ever more "
                "expensive. The next step has the picture at the lower right; drag the "
                "slider below it."
            ),
            hide=("answer", "titles", "r_soft", "r_step"),
        ),
        Step(
            page="reconstruction",
            set={"layer": "blocks.1.mlp.fc1", "r_against": "layer alone"},
            text=(
                "Another layer, another question. *Layer alone* compares with the learned "
                "network in which only `blocks.1.mlp.fc1` goes back to its nearest levels. "
                "QDrop fits whole blocks, not layers."
            ),
            question="Would this layer's own output then be closer to float?",
            choices=(
                "Yes",
                "No",
            ),
            right=lambda f: (
                f.output.acc_mse_nearest < f.output.acc_mse,
                f.output.acc_mse_nearest >= f.output.acc_mse,
            ),
            reveal=lambda f: (
                "As learned, its output error is "
                f"{f.output.acc_mse / f.output.acc_mse_nearest:.1f} times what it would be. "
                "The layer pays with its own accuracy, and the block that holds it gains: "
                "it makes up for errors that came before."
            ),
            hide=("answer", "r_arrows", "r_numbers"),
        ),
        Step(
            page="reconstruction",
            set={"r_metric": "KL divergence"},
            text=(
                "Three ingredients, one after the other: learn the rounding layer by layer "
                "(AdaRound), learn whole blocks with their activation steps (BRECQ), drop "
                "the rounding of activations at random (QDrop). The measure is the KL of "
                "the answers to those of the float network."
            ),
            question="Which of the three comes closest to float?",
            choices=(
                "AdaRound",
                "BRECQ",
                "QDrop",
            ),
            right=lambda f: (
                -f.runs["ada"].kl,
                -f.runs["brecq"].kl,
                -f.kl,
            ),
            reveal=lambda f: (
                f"KL to float: nearest {f.runs['near'].kl:.3f}, AdaRound "
                f"{f.runs['ada'].kl:.3f}, BRECQ {f.runs['brecq'].kl:.3f}, QDrop {f.kl:.3f} "
                "nats. BRECQ and QDrop share what AdaRound lacks: whole blocks at once, "
                "together with the steps of their activations. *Finish* shows the picture, "
                "at the foot of the page."
            ),
            runs={"ada": {"q": "adaround"}, "brecq": {"q": "brecq"}, "near": {"q": "nearest"}},
            hide=("answer", "r_waterfall"),
        ),
    ),
)
