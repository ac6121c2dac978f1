"""Pictures whose answer quantization changed: lost and gained apart, with both answers."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import streamlit as st
from PIL import Image

from qlib.measure import paired
from qlib.measure.paired import Pair, Preds
from qlib.plots.shared.guesses import Picture, read

MOST = 12  # cards of one side
FEW = 40  # pixels a side: such pictures are shown as squares, not smoothed


@dataclass(frozen=True)
class Side:
    """The changed images of one kind: those that can be shown, and how many there are."""

    name: str
    cards: tuple[Picture, ...]
    total: int


def pool(runs: Sequence[Preds]) -> dict[str, np.ndarray]:
    """Stored pictures by image id, from any of these runs: pixels (h, w, 3)."""
    pixels: dict[str, np.ndarray] = {}
    for preds in runs:
        if "thumbs" in preds and "thumb_index" in preds:
            places = np.asarray(preds["thumb_index"])
            names = np.asarray(preds["ids"])[places]
            pixels |= {str(n): p for n, p in zip(names, preds["thumbs"], strict=False)}
    return pixels


def sides(preds: Preds, pictures: Mapping[str, np.ndarray], most: int = MOST) -> tuple[Side, Side]:
    """The lost and the gained images whose picture is stored, at most ``most`` of each.

    Surest wrong answers first among the lost, surest right ones among the gained.
    """
    names = [str(n) for n in preds["class_names"]]
    made = []
    for name, places in zip(("lost", "gained"), paired.changed(preds), strict=True):
        sure = np.asarray(preds["quant_prob"])[places, 0].astype(np.float32)
        order = places[np.argsort(-sure, kind="stable")]
        kept = [i for i in order if str(preds["ids"][i]) in pictures][:most]
        cards = tuple(_picture(preds, pictures, int(i), names) for i in kept)
        made.append(Side(name, cards, len(places)))
    return made[0], made[1]


def _picture(preds: Preds, pictures: Mapping[str, np.ndarray], i: int, names: list[str]) -> Picture:
    key, label = str(preds["ids"][i]), int(preds["labels"][i])
    guesses = (read(preds, side, i, names) for side in ("float", "quant"))
    return Picture(key, label, names[label], np.asarray(pictures[key]), *guesses)


def show(lost: Side, gained: Side) -> None:
    """Show both rows of cards, each with how many are shown of how many."""
    for side, meaning in (
        (lost, "right in float, wrong after quantization"),
        (gained, "wrong in float, right after quantization"),
    ):
        shown = f"{len(side.cards)} of {side.total} shown" if side.total else "none"
        st.markdown(f"**{side.name.capitalize()}**: {meaning} · {shown}")
        if side.cards:
            st.html(cards(side))
        elif side.total:
            st.caption("No pictures of these images are stored with the runs.")
    if any(len(side.cards) < side.total for side in (lost, gained)):
        st.caption(
            f"A run stores small pictures of some images only; at most {MOST} are shown a side, "
            "the surest answers first."
        )


def cards(side: Side) -> str:
    """HTML of the cards; every text from a file is escaped."""
    body = "".join(_card(picture) for picture in side.cards)
    return f'{STYLE}<div class="qx-cards" role="list">{body}</div>'


def _card(picture: Picture) -> str:
    name = html.escape(picture.name)
    answers = [
        f'<span class="{"yes" if g.classes[:1] == (picture.label,) else "no"}">'
        f"{'✓' if g.classes[:1] == (picture.label,) else '✕'} {what}: "
        f"<b>{html.escape(g.names[0]) if g.names else '?'}</b> "
        f"{f'{100 * g.probs[0]:.0f} %' if g.probs else ''}</span>"
        for what, g in (("float", picture.float), ("quantized", picture.quant))
    ]
    small = " class=small" if max(picture.pixels.shape[:2]) <= FEW else ""
    return (
        f'<div class="card" role="listitem"><img{small} src="{png(picture.pixels)}" '
        f'alt="test image of class {name}"><div><span>true: <b>{name}</b></span>'
        f"{''.join(answers)}</div></div>"
    )


def png(pixels: np.ndarray) -> str:
    """The pixels as a PNG in a ``data:`` address."""
    body = io.BytesIO()
    Image.fromarray(pixels).save(body, format="PNG")
    return "data:image/png;base64," + base64.b64encode(body.getvalue()).decode()


def table(pair: Pair) -> pd.DataFrame:
    """Show the 2×2 table of one run against float: images by who is right."""
    return pd.DataFrame(
        {
            "": ["float right", "float wrong"],
            "quantized right": [pair.both, pair.second],
            "quantized wrong": [pair.first, pair.neither],
        }
    )


STYLE = """<style>
.qx-cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(196px, 1fr)); gap: 8px; }
.qx-cards .card { display: flex; gap: 9px; align-items: center; padding: 6px; border-radius: 8px;
  border: 1px solid color-mix(in srgb, currentColor 16%, transparent); font-size: 0.84rem; }
.qx-cards img { width: 60px; height: 60px; object-fit: contain; border-radius: 4px; flex: none; }
.qx-cards img.small { image-rendering: pixelated; }
.qx-cards .card div { display: flex; flex-direction: column; line-height: 1.35; min-width: 0; }
.qx-cards .card span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.qx-cards .no { color: #D6455D; }
</style>"""
