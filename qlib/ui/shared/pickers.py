"""Pickers that pages share: backbone, images, method, bits, runs. All are bound to the URL."""

import re
from collections.abc import Callable, Sequence

import streamlit as st

from qlib.core import own_code, specs
from qlib.core.records import BASELINE
from qlib.core.registry import discover, names
from qlib.ui.shared.glossary import word

MODEL, DATA, METHOD = "digits-vit", "digits", "brecq"
EXAMPLES = {
    "NAME": "deit_tiny_patch16_224",
    "PATH": "/data/images or /data/images.zip",
    own_code.PATTERN: "/home/me/net.py:build",
}
URL = "query-params"
TIMM_HELP = (
    "Any network name that timm knows; a tag says whose weights and preprocessing, and options "
    "after a ? how it is made: resnet18.a1_in1k?img_size=96. Options: img_size, in_chans, "
    "num_classes, global_pool, patch_size, window_size, preprocess=test (timm's test size, crop)."
)
OWN_HELP = (
    "A Python file of your own and, after a colon, the function in it that returns the network "
    "(and, if it likes, its preprocessing). Its code is run on this machine, so name only a file "
    "that you trust. Not available on an app that is served to others."
)


def hole(key: str) -> str | None:
    """The part of a pattern that is to be filled in: ``NAME`` of ``timm:NAME``, else all of it."""
    found = re.search(r"(?:^|:)([A-Z]+(?:\.py:[A-Z]+)?)$", key)
    return found.group(1) if found else None


def unfilled(name: str, known: list[str]) -> tuple[str | None, str]:
    """The key that ``name`` was made from, and what fills its hole: the reverse of a pick."""
    if name in known:
        return name, ""
    before = {key: key.removesuffix(gap) for key in known if (gap := hole(key))}
    for key, start in before.items():
        if name.startswith(start) and (start or own_code.is_own(name)):
            return key, name.removeprefix(start)
    return None, name.partition(":")[2]


def model() -> tuple[str, str | None]:
    """Show the picker of a backbone; returns its key, and a weights file if one is named."""
    keys = _first(specs.model_keys(), MODEL)
    picked = st.selectbox(
        "Backbone",
        keys,
        key="model",
        bind=URL,
        on_change=match_data,
        help="The trained network to quantize. Digits networks come with their weights.",
    )
    own = picked == own_code.PATTERN
    if own:
        picked = _filled(picked, "name", "File and function", OWN_HELP)
        st.caption(":material/warning: Runs the code in this file on this machine.")
    else:
        picked = _filled(picked, "name", "Network name", TIMM_HELP)
    weights = None
    if not picked.startswith("digits-"):
        weights = st.text_input(
            "Weights file (optional)" if own or picked.startswith("timm:") else "Weights file",
            key="weights",
            bind=URL,
            placeholder="/data/weights.safetensors",
            help="A .safetensors or .pth file of the network's state. Of a checkpoint with several "
            "sets of weights a moving average is taken; FILE#KEY takes another one. Without a "
            "file, timm networks load their published weights, which needs a network connection "
            "once.",
        )
    return picked, weights or None


def dataset() -> str:
    """Show the picker of test images (also calibrated with, unless others are named)."""
    keys = _first(specs.dataset_keys(), DATA)
    picked = st.selectbox(
        "Images",
        keys,
        key="data",
        bind=URL,
        help="Where the images come from. Calibration and test images never overlap.",
    )
    return _filled(picked, "path", "Folder or zip", "A folder (or zip) with one folder per class.")


def _filled(picked: str, key: str, name: str, help: str) -> str:
    """The pattern with its hole filled by a text field; other keys as they are."""
    gap = hole(picked)
    if gap is None:
        return picked
    text = st.text_input(name, key=key, bind=URL, placeholder=EXAMPLES.get(gap, gap), help=help)
    return picked[: -len(gap)] + text.strip() if text else picked


def match_data() -> None:
    """Choose the images that the chosen backbone was trained for, where the names say so."""
    source = st.session_state["model"].split("-")[0]
    fitting = [key for key in specs.dataset_keys() if key.split(":")[0] == source]
    if fitting:
        st.session_state["data"] = fitting[0]


def method() -> str:
    """Show the picker of a method; the baseline first, then by title."""
    methods = discover("methods")
    order = sorted(methods, key=lambda k: (k != BASELINE, methods[k].title.casefold()))
    start = METHOD if METHOD in methods else order[0]
    picked = st.pills(
        "Method",
        order,
        format_func=lambda k: methods[k].title,
        default=start,
        required=True,
        wrap=True,
        key="method",
        bind=URL,
        help="How values are rounded, and what is learned to make up for it.",
    )
    owner = methods[picked or start]
    st.caption(f"{owner.promise} Takes {owner.cost} on a laptop. {owner.paper}.")
    return picked or start


def bits(side: str, key: str, default: int = 4) -> int:
    """Show the picker of 2 to 8 bits for ``side`` (weights or activations)."""
    picked = st.segmented_control(
        f"{side} bits",
        list(range(2, 9)),
        default=default,
        required=True,
        key=key,
        bind=URL,
        help=word("bits"),
    )
    return picked or default


def observer(side: str, key: str, help: str) -> str:
    """Show the picker of the observer that chooses the clipping range of ``side``."""
    known = _first(list(names("observers")), "mse")
    return st.selectbox(f"{side} observer", known, key=key, bind=URL, help=help)


def allocator(key: str, help: str) -> str:
    """Show the picker of an allocator of bits to layers; nothing where there is only one."""
    allocators = discover("allocators")
    if len(allocators) == 1:
        return next(iter(allocators))
    order, title = _first(list(allocators), "same"), lambda name: allocators[name].title
    return st.selectbox("Bits of layers", order, format_func=title, key=key, bind=URL, help=help)


def runs(
    known: Sequence[str], default: Sequence[str], *, most: int, on_change: Callable[[], None]
) -> list[str]:
    """Show a picker of several runs by name, at most ``most``."""
    return st.multiselect(
        f"Runs to compare (up to {most})",
        list(known),
        default=list(default),
        max_selections=most,
        key="runs",
        bind=URL,
        on_change=on_change,
        placeholder="Choose runs here or tick them in the table",
    )


def _first(known: list[str], start: str) -> list[str]:
    """The list with ``start`` in front, if it is there."""
    return sorted(known, key=lambda key: key != start)
