"""The same few pictures before and after: five best guesses of the float and quantized model."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import plotly.graph_objects as go
from PIL import Image

from qlib.plots.shared import theme, untyped
from qlib.plots.shared.guesses import Guess, Picture, choose, read

__all__ = ["PredictionStrip", "alt", "choose", "figure", "headline", "info"]

FEW = 40  # pixels a side; such pictures are shown as squares, not smoothed
ACCENT = "#3848FA"  # the true class; a wrong first guess is red, with a cross and an outline

# Geometry in pixels, from the top down: picture, its label, then two blocks of five bars.
PICTURE, LABEL, CAPTION, BARS, BOTTOM, GAP = 88, 26, 28, 96, 6, 0.024
LARGE = 1.45  # for a room: five lines of large text fit beside the bars
PLOT = PICTURE + LABEL + 2 * (CAPTION + BARS)


@dataclass(frozen=True)
class PredictionStrip:
    """Data of the figure: pictures with both models' guesses.

    What the figure shows; ``setting`` names the quantization, as in "4 bits, BRECQ".
    """

    pictures: tuple[Picture, ...]
    setting: str

    @property
    def small(self) -> bool:
        """Whether the pictures are so small that their pixels should be seen."""
        return all(max(p.pixels.shape[:2]) <= FEW for p in self.pictures)

    def count(self, verdict: str) -> int:
        """How many pictures are kept, lost, gained or missed (``verdict``)."""
        return sum(p.verdict == verdict for p in self.pictures)


def info(
    preds: Mapping[str, np.ndarray],
    chosen: Sequence[int],
    pictures: Mapping[int, np.ndarray],
    *,
    setting: str,
    side: str = "quant",
) -> PredictionStrip:
    """Data of the figure: the chosen images with both models' guesses.

    ``preds`` holds arrays as in ``preds.npz``, ``pictures`` pixels by position; ``side`` is
    which quantized model: ``quant``, or ``nearest`` for the baseline stored beside it.
    """
    names = [str(n) for n in preds["class_names"]]
    made = tuple(
        Picture(
            id=str(preds["ids"][i]),
            label=int(preds["labels"][i]),
            name=names[int(preds["labels"][i])],
            pixels=np.asarray(pictures[i]),
            float=read(preds, "float", i, names),
            quant=read(preds, side, i, names),
        )
        for i in chosen
    )
    return PredictionStrip(made, setting)


def headline(info: PredictionStrip) -> str:
    """The take-away: how many of these pictures the quantized model loses."""
    n, lost, gained = len(info.pictures), info.count("lost"), info.count("gained")
    if lost == 0 and gained == 0:
        return f"With {info.setting}, all {n} pictures keep their answer"
    if lost == 0:
        return f"With {info.setting}, none of these {n} pictures is lost, and {gained} gained"
    verb = "turns" if lost == 1 else "turn"
    return f"With {info.setting}, {lost} of these {n} pictures {verb} wrong"


@dataclass
class _Parts:
    """What the figure is made of, handed over at once: axes added one by one take far longer."""

    traces: list[dict] = field(default_factory=list)
    axes: dict[str, dict] = field(default_factory=dict)
    notes: list[dict] = field(default_factory=list)
    shapes: list[dict] = field(default_factory=list)
    images: list[dict] = field(default_factory=list)

    def figure(self) -> go.Figure:
        more = {"annotations": self.notes, "shapes": self.shapes, "images": self.images}
        return go.Figure(self.traces, self.axes | more)


def figure(info: PredictionStrip, *, dark: bool = False, large: bool = False) -> go.Figure:
    """Draw a column per picture: the picture, bars of the float model, of the quantized model."""
    parts = _Parts()
    n = len(info.pictures)
    width = (1 - GAP * (n - 1)) / max(1, n)
    for column, picture in enumerate(info.pictures):
        left = column * (width + GAP)
        _place_picture(parts, picture, left, width, dark, large)
        for row, guess in enumerate((picture.float, picture.quant)):
            place = (left, left + width), (column, row)
            _place_bars(parts, picture, guess, place, dark, large)
    top = 1 - (PICTURE + LABEL + CAPTION) / PLOT
    for y, text in ((top, "Float model"), (top - (BARS + CAPTION) / PLOT, f"{info.setting}")):
        note = {"x": 0, "y": y, "text": f"<b>{text}</b>", "xanchor": "left", "yanchor": "bottom"}
        parts.notes.append(note | _note(dark))
    scale = {"x": 1, "y": top, "text": "bar = probability of the class, 0 to 1"}
    scale |= {"xanchor": "right", "yanchor": "bottom"}
    parts.notes.append(scale | _note(dark, theme.faint(dark)))
    framed = theme.frame(parts.figure(), title=headline(info), dark=dark, large=large)
    margin = untyped.layout(framed).margin.t
    framed.update_layout(
        showlegend=False,
        bargap=0.14,
        margin={"l": 3, "r": 3, "b": BOTTOM},
        height=round(PLOT * (LARGE if large else 1)) + margin + BOTTOM,
        hovermode="closest",
    )
    return framed


def _note(dark: bool, color: str | None = None) -> dict:
    font = {"size": theme.FONT_SIZE, "color": color or theme.ink(dark)}
    return {"xref": "paper", "yref": "paper", "showarrow": False, "font": font, "yshift": -1}


def _place_picture(
    parts: _Parts, picture: Picture, left: float, width: float, dark: bool, large: bool
) -> None:
    place = {"xref": "paper", "yref": "paper", "x": left, "y": 1}
    place |= {"sizex": width, "sizey": PICTURE / PLOT, "xanchor": "left", "yanchor": "top"}
    parts.images.append(place | {"source": _png(picture.pixels), "sizing": "contain"})
    mark, color = {
        "kept": ("✓", theme.faint(dark)),
        "gained": ("✓", theme.RIGHT),
        "lost": ("✕", theme.WRONG),
        "missed": ("✕", theme.faint(dark)),
    }[picture.verdict]
    name = _short(picture.name, 9 if large else 16)
    note = {"x": left, "y": 1 - (PICTURE + LABEL) / PLOT, "xanchor": "left", "yanchor": "bottom"}
    note["text"] = f"{name}  <b>{mark}</b> {picture.verdict}"
    parts.notes.append(note | _note(dark, color))


def _place_bars(
    parts: _Parts,
    picture: Picture,
    guess: Guess,
    place: tuple[tuple[float, float], tuple[int, int]],
    dark: bool,
    large: bool,
) -> None:
    domain, (column, row) = place
    number = str(2 * column + row + 1)
    top = 1 - (PICTURE + LABEL + CAPTION + row * (BARS + CAPTION)) / PLOT
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": guess.probs,
        "y": list(range(len(guess.names))),
        "xaxis": "x" + number,
        "yaxis": "y" + number,
        "marker": {"color": _colors(guess, picture.label), "line": {"width": 0}},
        "customdata": [[n, p * 100] for n, p in zip(guess.names, guess.probs, strict=True)],
        "hovertemplate": "%{customdata[0]}: %{customdata[1]:.1f} %<extra></extra>",
        "name": f"{('float', 'quantized')[row]} {picture.id}",
    }
    parts.traces.append(bars)
    _place_words(parts, picture, guess, number, dark, 9 if large else 14)
    hidden = {"visible": False, "fixedrange": True}
    y_axis = {"domain": (max(0.0, top - BARS / PLOT), top), "range": [4.5, -0.5], **hidden}
    x_axis = {"domain": domain, "range": [0, 1], "anchor": "y" + number, **hidden}
    parts.axes[f"xaxis{number}"] = x_axis
    parts.axes[f"yaxis{number}"] = y_axis | {"anchor": "x" + number}
    if guess.classes[0] != picture.label:
        parts.shapes.append(_outline(number))


def _outline(number: str) -> dict:
    return {
        "type": "rect",
        "xref": f"x{number} domain",
        "yref": f"y{number} domain",
        **{"x0": 0, "x1": 1, "y0": 0, "y1": 1},
        "line": {"color": theme.WRONG, "width": 1.6},
        "fillcolor": "rgba(0,0,0,0)",
    }


def _colors(guess: Guess, label: int) -> list[str]:
    colors = []
    for place, c in enumerate(guess.classes):
        if c == label:
            colors.append(theme.rgba(ACCENT, 0.55))
        elif place == 0:
            colors.append(theme.rgba(theme.WRONG, 0.55))
        else:
            colors.append(theme.rgba(theme.GREY, 0.32))
    return colors


def _place_words(
    parts: _Parts, picture: Picture, guess: Guess, number: str, dark: bool, width: int
) -> None:
    """Class names at the left and percentages at the right, over the bars."""
    font = {"size": theme.SMALL, "color": theme.ink(dark)}
    names = []
    for place, (name, c) in enumerate(zip(guess.names, guess.classes, strict=True)):
        cross = "✕ " if place == 0 and c != picture.label else ""
        text = cross + _short(name, width)
        names.append(f"<b>{text}</b>" if c == picture.label or cross else text)
    rows = list(range(len(names)))
    shares = [f"{p:.0%}" if p >= 0.005 else "" for p in guess.probs]
    common = {"type": "scatter", "mode": "text", "hoverinfo": "skip", "y": rows, "textfont": font}
    common |= {"xaxis": "x" + number, "yaxis": "y" + number}
    for x, texts, where in ((0.01, names, "middle right"), (0.99, shares, "middle left")):
        parts.traces.append({"x": [x] * len(rows), "text": texts, "textposition": where, **common})


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"


def _png(pixels: np.ndarray, side: int = 168) -> str:
    """A data address of the picture; small ones are enlarged by whole pixels and stay crisp."""
    image = Image.fromarray(pixels)
    if max(image.size) <= FEW:
        factor = max(1, side // max(image.size))
        size = (image.width * factor, image.height * factor)
        image = image.resize(size, Image.Resampling.NEAREST)
    body = io.BytesIO()
    image.save(body, format="PNG")
    return "data:image/png;base64," + base64.b64encode(body.getvalue()).decode()


def alt(info: PredictionStrip) -> str:
    """The figure in words, with its numbers."""
    parts = [
        f"{p.name}: {p.verdict}, float says {p.float.names[0]} ({p.float.probs[0]:.0%}), "
        f"quantized says {p.quant.names[0]} ({p.quant.probs[0]:.0%})"
        for p in info.pictures
    ]
    return f"Predictions before and after, {info.setting}. " + "; ".join(parts) + "."
