"""What does learning the rounding change? Per layer what moved, per unit how it was fitted."""

import streamlit as st

from qlib.ui.reconstruction import ablation, layer_gains, losses, page
from qlib.ui.shared import context, frame, state

QUESTION = "What does learning the rounding change?"

page.begin()
top = st.container()
view = context.view(data=True)
if view is None:
    with top:
        frame.head(QUESTION)
    st.stop()

others = page.peers(view)
title = state.titles().get(view.record.spec.method, view.record.spec.method)
learned = page.changed(view, others)
if learned:
    shown = page.controls(view, others)
    gains = layer_gains.of(view, shown)
    with top:
        frame.head(QUESTION, layer_gains.answer(gains, title))
    left, right = st.columns(2, gap="medium")
    with left:
        layer_gains.figures(view, shown, others)
    with right:
        losses.panel(view, shown, others)
else:
    with top:
        frame.head(QUESTION, layer_gains.answer((), title))
    page.offer(view, others)
    losses.panel(view, None, others)

ablation.panel(view, others)
if learned:
    frame.try_this(
        "Every arrow starts at nearest rounding. To the right: the weights are further from the "
        "trained ones. Down: the layer's output is closer to the float output.",
        "Choose *layer alone*: would a layer's output be closer to float if only its own weights "
        "went back to nearest? Layers that make up for earlier errors say yes.",
        "Drag the step below the soft rounding: when do the weights choose a side?",
        "Lay another method over it, or step down the bits: what does learning win there?",
    )
