"""The settings of a run as a form: pickers and the method's own fields. Yields a RunSpec."""

import re

import streamlit as st

from qlib.core import specs
from qlib.core.params import params
from qlib.core.records import InvalidSpec, RunSpec
from qlib.core.registry import discover
from qlib.ui.run import designs, uploads
from qlib.ui.shared import address, forms, own_code, pickers, resolve

SPEC = params(RunSpec)
SPEC_KEYS = {  # fields of a specification that have a widget of their own, and its key
    "calib": "calib",
    "calib_choice": "choice",
    "device": "device",
    "precision": "prec",
    "edge_layers": "edge",
    "placement": "place",
    "weight_observer": "wobs",
    "act_observer": "aobs",
    "granularity": "gran",
    "allocator": "alloc",
    "symmetric_weights": "wsym",
    "symmetric_acts": "asym",
    "allow_float": "allow",
    "tune_norms": "norms",
    "tune_biases": "biases",
    "skip_damaged": "skip",
    "output": "output",
    "task": "task",
    "labels": "labels",
}
FIRST = ("model", "method", "w", "a")  # what other pages know as well
URL = "query-params"
SEED = "seed"


def begin() -> None:
    """Fill an untouched form with backbone, method and bits of the pages before."""
    if any(key in box for key in FIRST for box in (st.session_state, st.query_params)):
        return
    seen = address.looked_at()
    if seen.get(address.MODEL) in specs.model_keys():
        st.session_state["model"] = seen[address.MODEL]
        pickers.match_data()
    if seen.get(address.METHOD) in discover("methods"):
        st.session_state["method"] = seen[address.METHOD]
    for key, bits in zip("wa", resolve.bits_of(seen.get(address.BITS)), strict=False):
        st.session_state[key] = bits


def draft() -> RunSpec:
    """Show the form; returns its contents, unchecked (see `qlib.core.specs.checked`)."""
    left, right = st.columns(2, gap="medium")
    with left:
        model, weights = pickers.model()
    with right:
        data = pickers.dataset()
    method = pickers.method()
    left, right = st.columns(2, gap="medium")
    with left:
        weight_bits = pickers.bits("Weight", "w")
    with right:
        act_bits = pickers.bits("Activation", "a")
    owner = discover("methods")[method]
    with _part(f"Settings of {owner.title}", ":material/tune:", "part_method"):
        designs.start_from(method)
        settings = forms.fields(owner, method)
        if not settings:
            st.caption(f"{owner.title} has nothing to set: it learns nothing.")
    with _part("Images, seed and device", ":material/photo_library:", "part_images"):
        images = _images()
    with _part("Own network and pictures", ":material/upload_file:", "part_own"):
        uploads.fields()
        own = _own()
    with _part("Grid and placement", ":material/grid_4x4:", "part_grid"):
        grid = _grid()
    with _part("Tuned afterwards", ":material/build:", "part_after"):
        after = _after()
    return RunSpec(
        model, data, method, weight_bits, act_bits, weights=weights, settings=settings,
        **images, **own, **grid, **after,
    )  # fmt: skip


def _part(name: str, icon: str, key: str):
    return st.expander(name, icon=icon, key=key)


def _field(name: str, label: str | None = None):
    return forms.field(SPEC[name], SPEC_KEYS[name], name=label)


def _images() -> dict:
    one, two, three = st.columns(3)
    with one:
        calib = _field("calib", "Calibration images")
        other = st.text_input(
            "Calibration source",
            key="calib_data",
            bind=URL,
            placeholder="as above",
            help="Calibrate on other images, for example folder:/data/photos. They need no labels.",
        )
        choice = _field("calib_choice", "Calibration images are")
    with two:
        test = st.number_input(
            "Held-out test images",
            min_value=1,
            value=None,
            step=100,
            placeholder="all",
            key="test",
            bind=URL,
            help="Fewer are quicker and give a wider interval. Empty: all there are.",
        )
        seed = _seed()
    with three:
        device = _field("device")
        precision = _field("precision", "Learn in")
    found = {"calib": calib, "calib_data": other.strip() or None, "seed": seed, "device": device}
    found |= {"calib_choice": choice, "precision": precision}
    return found | {"test": int(test) if test else None}


def _seed():
    """A seed as text: a browser's numbers end at 2⁵³. What is no number is left to the check."""
    text = st.text_input("Seed", value="0", key=SEED, bind=URL, help=SPEC["seed"].help).strip()
    return int(text) if re.fullmatch(r"-?[0-9]{1,40}", text) else text


def _own() -> dict:
    """What only somebody's own network or pictures need."""
    one, two, three = st.columns(3)
    with one:
        output = st.text_input(
            "Output", key=SPEC_KEYS["output"], bind=URL, placeholder="the only one",
            help=SPEC["output"].help,
        )  # fmt: skip
        classes = st.text_input(
            "File of classes",
            key="classes",
            bind=URL,
            placeholder="folders by name",
            help="Where the network numbers its classes in another way than the folders' names do, "
            "or has more of them: a text file with a folder name a line, the first for output 0, "
            "or folder,index.",
        )
    with two:
        task = _field("task", "It returns")
        skip = _field("skip_damaged", "Skip damaged files")
    with three:
        labels = _field("labels", "Labels of the test images")
        allow = _field("allow_float", "Allow a part in float")
    found = {"output": output.strip(), "task": task, "labels": labels}
    found |= {"classes": classes.strip() or None, "skip_damaged": skip, "allow_float": allow}
    return found


def _grid() -> dict:
    one, two, three = st.columns(3)
    found = {}
    with one:
        found["edge_layers"] = _field("edge_layers", "First and last layer")
        found["placement"] = _field("placement", "Activations rounded at")
        found["allocator"] = pickers.allocator(SPEC_KEYS["allocator"], SPEC["allocator"].help)
    with two:
        for side, name in (("Weight", "weight_observer"), ("Activation", "act_observer")):
            found[name] = pickers.observer(side, SPEC_KEYS[name], SPEC[name].help)
    with three:
        found["granularity"] = _field("granularity", "One scale per")
        found["symmetric_weights"] = _field("symmetric_weights", "Symmetric weights")
        found["symmetric_acts"] = _field("symmetric_acts", "Symmetric inputs")
    return found


def _after() -> dict:
    one, two = st.columns(2)
    with one:
        norms = _field("tune_norms", "Channel statistics")
    with two:
        biases = _field("tune_biases", "Steps for all biases")
    return {"tune_norms": norms, "tune_biases": biases}


def again(spec: RunSpec) -> None:
    """Leave the job for the form, filled with the job's settings."""
    st.query_params.pop("job", None)
    model, name = pickers.unfilled(uploads.pathless(spec.model), specs.model_keys())
    data, path = pickers.unfilled(uploads.pathless(spec.data), specs.dataset_keys())
    if model is None or data is None or spec.method not in discover("methods"):
        return  # made with a source or a method that is gone
    values = {"model": model, "name": name, "weights": uploads.pathless(spec.weights or "")}
    values |= {"data": data, "path": path, "method": spec.method}
    values |= {"w": spec.weight_bits, "a": spec.act_bits, "test": spec.test}
    values |= {"calib_data": uploads.pathless(spec.calib_data or ""), SEED: str(spec.seed)}
    values |= {"classes": spec.classes or ""}
    values |= {key: getattr(spec, name) for name, key in SPEC_KEYS.items()}
    values |= {f"{spec.method}.{name}": value for name, value in spec.settings.items()}
    for key, value in values.items():
        st.session_state[key] = value


def checked(spec: RunSpec) -> RunSpec:
    """The specification as the job gets it: complete, with absolute paths.

    Raises:
        InvalidSpec: one sentence on what is wrong.
    """
    own_code.check(spec)  # before a file is looked at
    try:
        return specs.absolute(specs.checked(uploads.named(spec)))
    except InvalidSpec as error:
        raise InvalidSpec(uploads.pathless(str(error))) from None
