"""*Try it now* on the Start page: a real network guesses a dozen images at the chosen bits."""

import html
from collections.abc import Sequence
from functools import partial

import streamlit as st

from qlib.core.records import InvalidSpec
from qlib.live import Answer, Superseded
from qlib.plots.shared.guesses import Picture
from qlib.plots.shared.prediction_strip import PredictionStrip
from qlib.store import Finished
from qlib.ui.shared import gallery, live, state, stored
from qlib.ui.shared.glossary import word
from qlib.ui.shared.resolve import Choice
from qlib.ui.start import strips
from qlib.ui.start.strips import Pictures

OFF = "These predictions are stored. Compute them here: loads in seconds, takes 1 GB of memory."


def row(known: Sequence[Finished], choice: Choice, shown: Pictures) -> Answer | None:
    """Show the switch and, where it is on, the network's guesses for some held-out images.

    None: it is off, or gives no answer (the page says why); stored predictions are right then.
    ``known``: as `spread.entries` gives them.
    """
    entry, many = choice.entry, _of_many_widths(known, choice.entry)
    turned = partial(_preferred, many) if many else None
    row = st.container(horizontal=True, vertical_alignment="center", key="live-row")
    below = st.container(key="live-below")
    with row:
        ready = live.switch(entry, word("live"), turned=turned, below=below)
        if not live.wanted():
            st.caption(OFF)
    with below:
        answer = _asked(entry, shown) if ready else None
        if answer is not None:
            at = f"answers at {entry.record.spec.weight_bits} bits"
            st.html(dozen(strips.first(entry, shown, answer), at))
            if many is None:
                _offer(entry)
    if answer is not None:
        with row:
            _said(entry, answer)
    return answer


def _of_many_widths(known: Sequence[Finished], shown: Finished) -> Finished | None:
    """The run of the shown one's backbone whose bit-width can be switched: the shown one first."""
    model = shown.record.spec.model
    return next(
        (e for e in (shown, *known) if e.record.bit_widths and e.record.spec.model == model), None
    )


def _preferred(many: Finished) -> Finished:
    """One network for all widths is what the bits should drive."""
    stored.change("q", many.record.spec.method)
    return many


def _asked(entry: Finished, shown: Pictures) -> Answer | None:
    spec = entry.record.spec
    try:
        return live.answer(entry, spec.act_bits, shown.asked, spec.weight_bits)
    except Superseded:
        return None  # this visitor has moved on: the page runs again already
    except InvalidSpec as error:
        live.failed(entry, str(error))
        return None


def _said(entry: Finished, answer: Answer) -> None:
    spec = entry.record.spec
    title = state.titles().get(spec.method, spec.method)
    how = f"one {title} network, switched to {spec.weight_bits} bits"
    if not entry.record.bit_widths:
        how = f"the stored {title} run of {spec.weight_bits} bits"
    st.badge("computed now", icon=":material/bolt:", color="green")
    images = f"{len(answer.images)} images, here and below, in {1000 * answer.seconds:.0f} ms"
    st.markdown(f":small[{images}: {how}]")


def _offer(entry: Finished) -> None:
    """Without a network of many widths each width is a stored run of its own: say what helps."""
    with st.container(horizontal=True, vertical_alignment="center", key="live-offer"):
        st.caption(
            f"No network with many widths is stored for `{entry.record.spec.network}`, so only "
            "widths with a run of their own can be chosen."
        )
        st.page_link(
            "pages/3_Run.py",
            label="Make one with PTMQ",
            icon=":material/play_circle:",
            query_params=stored.as_settings(entry.record) | {"method": "PTMQ"},
        )


def dozen(strip: PredictionStrip, label: str) -> str:
    """HTML of the pictures in one row, each with its first guess and how sure that is."""
    n, right = len(strip.pictures), strip.count("kept") + strip.count("gained")
    before = strip.count("kept") + strip.count("lost")
    head = f"<b>{right} of the first {n} held-out images are right</b> (in float {before})"
    cells = "".join(_cell(picture, small=strip.small) for picture in strip.pictures)
    row = f'<div class="qx-dozen" role="list" aria-label="{html.escape(label)}">{cells}</div>'
    return f'{STYLE}<div class="qx-head">{head}</div>{row}'


def _cell(picture: Picture, *, small: bool) -> str:
    mark = "✓" if picture.verdict in ("kept", "gained") else "✕"
    name, said = html.escape(picture.name), html.escape(picture.quant.names[0])
    sure, before = f"{picture.quant.probs[0]:.0%}", html.escape(picture.float.names[0])
    told = f"true {name}; float network: {before}; now: {said}, {sure}"
    return (
        f'<div class="{picture.verdict}" role="listitem" title="{told}">'
        f'<img{" class=small" if small else ""} src="{gallery.png(picture.pixels)}" alt="{told}">'
        f"<span><b>{mark} {said}</b></span><span>{sure}</span></div>"
    )


STYLE = """<style>
.qx-head { font-size: 0.95rem; margin-bottom: 0.3rem; }
.qx-dozen { display: grid; grid-template-columns: repeat(12, minmax(0, 1fr)); gap: 6px; }
.qx-dozen > div { display: flex; flex-direction: column; align-items: center; padding: 4px 2px;
  border-radius: 8px; border: 1px solid color-mix(in srgb, currentColor 16%, transparent);
  font-size: 0.84rem; line-height: 1.3; min-width: 0; }
.qx-dozen img { width: 40px; height: 40px; object-fit: contain; border-radius: 4px; }
.qx-dozen img.small { image-rendering: pixelated; }
.qx-dozen span { max-width: 100%; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.qx-dozen .lost { border-color: #D6455D; background: color-mix(in srgb, #D6455D 12%, transparent); }
.qx-dozen .missed { border-style: dashed; }
.qx-dozen .gained { border-color: #2E9E5D; }
</style>"""
