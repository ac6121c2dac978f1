"""Self-describing fields as widgets: limits, choices and help come from the fields themselves."""

import math
from typing import Any

import streamlit as st

from qlib.core.params import Param, params

LABELS = {"act": "activation", "calib": "calibration", "acts": "activations"}


def label(name: str) -> str:
    """A field's name as a label: ``act_steps`` → ``Activation steps``."""
    words = [LABELS.get(word, word) for word in name.split("_")]
    return " ".join(words).capitalize()


def fields(owner: type, prefix: str, *, columns: int = 3, only: tuple[str, ...] = ()) -> dict:
    """Show a widget for each field of ``owner`` (or those in ``only``); values by name.

    Fields of one group stand together under its heading. A field that has no say with what
    another one says now is greyed. Widgets are bound to the URL under ``PREFIX.NAME``.
    """
    shown = {n: p for n, p in params(owner).items() if not only or n in only}
    values = {}
    for group in dict.fromkeys(p.group for p in shown.values()):
        if group:
            st.markdown(f"**{group}**")
        cells = st.columns(columns)
        members = (p for p in shown.values() if p.group == group)
        for place, p in enumerate(members):
            with cells[place % columns]:
                values[p.name] = field(p, f"{prefix}.{p.name}", idle=_idle(p, values))
    return values


def _idle(p: Param, values: dict) -> bool:
    """Does another field, drawn before, take this one's say away?"""
    if p.when is None or p.when[0] not in values:
        return False
    return values[p.when[0]] not in p.when[1]


def field(p: Param, key: str, *, name: str | None = None, idle: bool = False) -> Any:
    """Show the widget of one field; its value has the field's type and lies within its limits."""
    shown: dict[str, Any] = {"label": name or label(p.name), "key": key, "help": p.help}
    shown |= {"bind": "query-params", "disabled": idle}
    if p.type is bool:
        return st.toggle(value=p.default, **shown)
    if p.choices is not None:
        return st.selectbox(options=list(p.choices), index=p.choices.index(p.default), **shown)
    if p.type is int:
        shown |= {"min_value": _whole(p.low), "max_value": _whole(p.high)}
        return int(st.number_input(value=int(p.default), step=_stride(p.default), **shown))
    if p.type is float:
        shown |= {"min_value": _real(p.low), "max_value": _real(p.high)}
        step = 10.0 ** math.floor(math.log10(p.default)) if p.default else 0.1
        return float(st.number_input(value=float(p.default), step=step, format="%g", **shown))
    return st.text_input(value=p.default, **shown)


def _stride(default: int) -> int:
    """Steps of the plus and minus buttons: about a tenth of the default."""
    return max(1, 10 ** (len(str(abs(default))) - 2)) if default >= 100 else 1


def _whole(limit: float | None) -> int | None:
    return None if limit is None else math.ceil(limit)


def _real(limit: float | None) -> float | None:
    return None if limit is None else float(limit)
