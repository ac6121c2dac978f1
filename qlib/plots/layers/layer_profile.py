"""Damage of each layer: bars for one method, dots for several; in network order or worst first."""

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from qlib.plots.layers import frame
from qlib.plots.layers.damage import Known, Profile, Value
from qlib.plots.shared import places, theme

TOP = 5  # layers named in the figure
MANY = 80  # layers from which a range slider helps


@dataclass(frozen=True)
class LayerProfile:
    """Data of the figure: damage of each layer, for one or more methods on one network.

    ``layers``: names in the order of the axis, network order or worst first.
    """

    profiles: tuple[Profile, ...]
    layers: tuple[str, ...]
    order: str = "network"

    @property
    def first(self) -> Profile:
        """The profile of the run that is shown."""
        return self.profiles[0]

    @property
    def partial(self) -> bool:
        """Whether some layer's number is missing."""
        return any(v.state == "missing" for v in self.first.values)

    @property
    def top(self) -> tuple[Known, ...]:
        """The layers to name: the worst ones over all methods, each once, worst first."""
        found = sorted((v for p in self.profiles for v in p.worst[:TOP]), key=self._badness)
        once = {v.layer: v for v in reversed(found)}
        return tuple(sorted(once.values(), key=self._badness))[:TOP]

    def _badness(self, value: Known) -> float:
        return -self.first.bad * value.value


def info(profiles: Sequence[Profile], *, order: str = "network") -> LayerProfile:
    """Data of the figure, from the profiles of one or more methods.

    Profiles with the same layers, mode and metric; ``order``: ``network`` or ``worst``.

    Worst first goes by the first profile; layers without a number come last.

    Raises:
        ValueError: no profile.
    """
    if not profiles:
        raise ValueError("layer_profile.info needs at least one profile.")
    first = profiles[0]
    names = [v.layer for v in first.values]
    if order == "worst":
        ranked = [v.layer for v in first.worst]
        names = ranked + [name for name in names if name not in set(ranked)]
    return LayerProfile(tuple(profiles), tuple(names), order)


def headline(info: LayerProfile) -> str:
    """The take-away: the worst layer and how much of the whole damage it does."""
    first = info.first
    if not first.known:
        return "No layer is measured yet"
    worst = first.worst[0]
    so_far = " so far" if info.partial and first.mode in ("alone", "left_out") else ""
    damage = frame.amount(worst.value, first)
    if first.mode == "local":
        return f"{worst.layer} adds the largest error of its own: {damage}"
    if first.mode == "accumulated":
        return f"The output of {worst.layer} is furthest from float: {damage}"
    if first.bad * worst.value <= 0 and first.unit != "dB":
        return "No single layer does damage that these images show" + so_far
    if first.metric == "top1" and (worst.low is None or worst.low <= 0):
        does = "costs" if first.mode == "alone" else "in float wins back"
        return f"No single layer {does} accuracy that these images can prove" + so_far
    share = ""
    if first.whole and first.unit != "dB" and first.whole > 0:
        share = f", {frame.share(worst.value, first.whole)} of the whole network's"
    if first.mode == "alone":
        return f"{worst.layer} does most damage alone{so_far}: {damage}{share}"
    return f"{worst.layer} in float wins back most{so_far}: {damage}{share}"


def figure(
    info: LayerProfile, *, dark: bool = False, large: bool = False, chosen: str = ""
) -> go.Figure:
    """Draw the damage of each layer.

    Bars or dots per layer, flag line, worst layers named; ``chosen`` gets a band behind it.
    """
    figure = go.Figure()
    place = {layer: i for i, layer in enumerate(info.layers)}
    named = [(place[v.layer], _name(v)) for v in info.top]
    labels = places.lanes(named, len(place), frame.width(large))
    lanes = max((label.lane + 1 for label in labels), default=0)
    scale = frame.axis(info.profiles, lanes, large=large)
    frame.hatch(figure, info.first, place, scale, dark)
    for nth, profile in enumerate(info.profiles):
        if len(info.profiles) == 1:
            _bars(figure, profile, place, scale, dark)
        else:
            shift = (nth - (len(info.profiles) - 1) / 2) * 0.22
            _dots(figure, profile, {k: i + shift for k, i in place.items()}, scale, dark)
    frame.label(figure, labels, _peaks(info, place), scale, dark)
    if info.first.flag is not None and scale.low <= info.first.flag <= scale.high:
        frame.rule(figure, info.first.flag, _flag_text(info.first), len(place), dark)
    if chosen in place:
        frame.band(figure, place[chosen])
    frame.below(figure, info.first, info.layers, info.order, slider=len(place) > MANY, large=large)
    figure.update_yaxes(title=info.first.axis, **scale.settings)
    figure.update_layout(hovermode="closest", bargap=0.25, barmode="overlay")
    return frame.framed(figure, headline(info), dark=dark, large=large)


def _name(value: Value) -> str:
    """The whole name while it is short, else the end of it."""
    return value.layer if len(value.layer) <= 24 else "…" + value.layer[-23:]


def _peaks(info: LayerProfile, place: dict[str, int]) -> dict[float, float]:
    """The highest mark at each place: leader lines end there."""
    peaks: dict[float, float] = {}
    for profile in info.profiles:
        for v in profile.known:
            top = v.value if v.high is None else max(v.value, v.high)
            peaks[place[v.layer]] = max(peaks.get(place[v.layer], top), top)
    return peaks


def _bars(
    figure: go.Figure, profile: Profile, place: dict[str, int], scale: frame.Axis, dark: bool
) -> None:
    known = profile.known
    color = theme.style(profile.method).color
    figure.add_bar(
        x=[place[v.layer] for v in known],
        y=[scale.drawn(v.value) for v in known],
        customdata=frame.data(known, profile),
        name=profile.title,
        showlegend=False,
        marker={
            "color": [theme.rgba(color, 1.0 if profile.flagged(v) else 0.5) for v in known],
            "line": {"width": 0},
            "pattern": {
                "shape": ["/" if v.state == "kept" else "" for v in known],
                "fgcolor": theme.paper(dark),
                "fillmode": "overlay",
            },
        },
        error_y=_spread(known, scale, theme.faint(dark)),
        hovertemplate=frame.HOVER,
    )


def _dots(
    figure: go.Figure, profile: Profile, place: dict[str, float], scale: frame.Axis, dark: bool
) -> None:
    known, style = profile.known, theme.style(profile.method)
    figure.add_scatter(
        x=[place[v.layer] for v in known],
        y=[scale.drawn(v.value) for v in known],
        customdata=frame.data(known, profile),
        mode="markers",
        name=profile.title,
        marker={
            "symbol": style.symbol,
            "size": 9,
            "color": style.color,
            "line": {"width": 1, "color": theme.paper(dark)},
        },
        error_y=_spread(known, scale, theme.rgba(style.color, 0.6)),
        hovertemplate=frame.HOVER,
    )


def _spread(known: Sequence[Known], scale: frame.Axis, color: str) -> dict:
    """From the low to the high end of each value, where both are known."""
    if not any(v.low is not None for v in known):
        return {"visible": False}
    ends = [(scale.drawn(v.value), v.low, v.high) for v in known]
    return {
        "type": "data",
        "symmetric": False,
        "array": [0.0 if high is None else max(0.0, high - y) for y, _, high in ends],
        "arrayminus": [0.0 if low is None else max(0.0, y - low) for y, low, _ in ends],
        "color": color,
        "thickness": 1.2,
        "width": 0,
    }


def _flag_text(profile: Profile) -> str:
    if profile.mode in ("local", "accumulated"):
        return "flag: error a tenth of the signal's power"
    return "flag: a tenth of the whole network's"


def alt(info: LayerProfile) -> str:
    """The figure in words, with the numbers of the worst layers."""
    parts = []
    for profile in info.profiles:
        told = [f"{v.layer} {frame.amount(v.value, profile)}" for v in profile.worst[:TOP]]
        worst = ", ".join(told)
        parts.append(f"{profile.title or 'This run'}: worst are {worst or 'none measured'}")
    first = info.first
    flagged = sum(first.flagged(v) for v in first.values)
    return (
        f"{first.axis} of {len(first.known)} of {len(info.layers)} layers, {flagged} flagged. "
        + ". ".join(parts)
        + "."
    )
