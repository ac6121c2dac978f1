"""The guilty layer: how to find the layer that costs the accuracy."""

from qlib.guide.lessons.base import Lesson, Step

LESSON = Lesson(
    title="The guilty layer",
    promise=(
        "How to find the layer that costs the accuracy, and why the largest error is "
        "often innocent."
    ),
    order=3,
    set={"m": "digits-vit", "q": "nearest", "b": "W2A2"},
    steps=(
        Step(
            page="sensitivity",
            text=lambda f: (
                f"At {f.weight_bits} bits this network is right on {f.top1:.1f} % of the "
                f"images, in float on {f.top1_float:.1f} %. Every layer rounds two things: "
                "its weights, and the inputs that it reads. First question of every "
                "investigation: which of the two does it?"
            ),
            question="Which rounding does more damage here?",
            choices=(
                "rounding the weights",
                "rounding the inputs",
            ),
            right=lambda f: (
                f.profile.kl_weights,
                f.profile.kl_inputs,
            ),
            reveal=lambda f: (
                f"KL to the float answers: {f.profile.kl_weights:.2f} nats with the weights "
                f"alone, {f.profile.kl_inputs:.2f} with the inputs alone, "
                f"{f.profile.kl_both:.2f} with both. One thing differs between them: each "
                "output channel of the weights has a step of its own, while all values of "
                "an input share one."
            ),
            hide=("answer", "s-split", "s-main"),
        ),
        Step(
            page="sensitivity",
            set={"s_mode": "Local error", "s_order": "Worst first", "d": "calib"},
            text=lambda f: (
                "Here each layer is quantized alone, and its output is compared with its "
                f"float output. `{f.worst.local}` makes the largest error, the lowest SQNR "
                "of all. An obvious suspect."
            ),
            question="Is it also the layer that harms the network's answers most?",
            choices=(
                "yes, the largest error does most harm",
                "no, another one does",
            ),
            right=lambda f: (
                f.worst.local == f.worst.profile,
                f.worst.local != f.worst.profile,
            ),
            reveal=lambda f: (
                f"Judged by the answers, `{f.worst.profile}` does most: quantized alone it "
                f"moves them by {f.worst.kl:.2f} nats. An error counts as far as later "
                "layers listen to it. That cannot be read off the error; it has to be "
                "measured."
            ),
            hide=("answer",),
        ),
        Step(
            page="sensitivity",
            set={"s_mode": "Only this layer"},
            text=lambda f: (
                "Now the answers are the measure: one layer quantized, all others in float, "
                f"KL to the float answers. All layers together do {f.profile.kl_both:.2f} "
                f"nats. `{f.worst.profile}` does most alone."
            ),
            question="How much of the whole damage is that?",
            choices=(
                "less than a tenth",
                "a tenth to a third",
                "more than a third",
            ),
            right=lambda f: (
                f.worst.kl < f.profile.kl_both / 10,
                f.profile.kl_both / 10 <= f.worst.kl <= f.profile.kl_both / 3,
                f.worst.kl > f.profile.kl_both / 3,
            ),
            reveal=lambda f: (
                f"{f.worst.kl:.2f} of {f.profile.kl_both:.2f} nats: "
                f"{100 * f.worst.kl / f.profile.kl_both:.0f} %. Layers alone do not add up "
                "to the whole: errors meet, and one that reads disturbed inputs does more, "
                "or less, than alone. The guilt is often shared. The last step has the bars."
            ),
            hide=("answer", "s-main", "s-map"),
        ),
        Step(
            page="sensitivity",
            set={"s_mode": "All but this layer"},
            text=lambda f: (
                "The reverse question: everything is quantized but one layer. A high bar "
                "wins much back; a bar below zero says that this layer in float makes it "
                f"worse, because its error had cancelled another's. Is `{f.worst.profile}` "
                "on top here too? Two ways to ask, and a guilty layer should stand out in "
                "both."
            ),
        ),
        Step(
            page="sensitivity",
            set={"b": "W4A4", "s_mode": "Only this layer"},
            text=lambda f: (
                "The same network with 16 levels in place of 4. Before you blame a layer, "
                f"ask whether there is a crime. Of the {f.n} test images, {f.agreement:.1f} "
                "% get the same answer as in float."
            ),
            question="How large is the KL of the whole network now, against that at 2 bits?",
            choices=(
                "about half",
                "about a tenth",
                "less than a twentieth",
            ),
            right=lambda f: (
                f.profile.kl_both > f.runs["two"].profile.kl_both / 4,
                f.runs["two"].profile.kl_both / 20
                <= f.profile.kl_both
                <= f.runs["two"].profile.kl_both / 4,
                f.profile.kl_both < f.runs["two"].profile.kl_both / 20,
            ),
            reveal=lambda f: (
                f"{f.profile.kl_both:.3f} against {f.runs['two'].profile.kl_both:.2f} nats. "
                f"There is still a worst layer, `{f.worst.profile}`, as there always is one; "
                "but it does little. A ranking alone says nothing: look at the whole first."
            ),
            runs={"two": {"b": "W2A2"}},
            hide=("answer", "s-main", "s-split", "s-map"),
        ),
        Step(
            page="sensitivity",
            set={"s_mode": "Only this layer", "s_order": "Worst first"},
            text=(
                "Your turn, at 2 bits: tick the worst layer in the table at the foot and "
                "run it in float. Then tick one of the harmless ones instead. The paired "
                "numbers under the table say whether these images can tell the difference."
            ),
        ),
    ),
)
