"""Uploads on the form: a network file, a weights file, a zip of pictures; each fills its field."""

from collections.abc import Iterator
from contextlib import suppress

import streamlit as st
from streamlit.errors import StreamlitAPIException

from qlib import jobs, store
from qlib.core import own_code as own_names
from qlib.core.records import InvalidSpec, RunSpec
from qlib.store import uploads
from qlib.store.uploads import NETWORK, PICTURES, WEIGHTS, Kind
from qlib.ui.shared import own_code

OFF = (
    "Files are uploaded only by a visitor at the machine itself; whoever starts the app may allow "
    f"it to everybody with {own_code.OPT_IN}=1."
)
USUAL = "build"  # the function that is taken where there are several
FIELDS = (
    ("network", NETWORK, "Network (.py)", "A Python file with a function that returns the network "
     "(and, if it likes, its preprocessing). Its code is run on this machine."),
    ("weights", WEIGHTS, "Weights", "A state dictionary: .safetensors, .pth, .pt, .bin or .ckpt."),
    ("pictures", PICTURES, "Pictures (.zip)", "A zip of a folder with a folder for each class. It "
     "is read as it is, never unpacked."),
)  # fmt: skip


def fields() -> None:
    """Show the three uploads, or why there are none; a file that came fills its field."""
    if not own_code.allowed():
        st.caption(f":material/lock: {OFF}")
        return
    for cell, (key, kind, label, help) in zip(st.columns(3), FIELDS, strict=True):
        with cell:
            st.file_uploader(
                label,
                type=[ending.removeprefix(".") for ending in kind.endings],
                max_upload_size=kind.most // uploads.MB,
                key=_widget(key),
                on_change=_take,
                args=(key, kind),
                disabled=key == "weights" and _has_weights(),
                help=f"{help} At most {kind.most // uploads.MB} MB; or write its path into the "
                "field above.",
            )
    _tell()


def _has_weights() -> bool:
    """Whether the chosen network comes with its weights, so that no file of them is asked for."""
    return str(st.session_state.get("model", "digits-")).startswith("digits-")


def _widget(key: str) -> str:
    """The widget's key; a new one after each upload, which lets go of the file in memory."""
    return f"upload-{key}-{st.session_state.get(f'uploads-{key}', 0)}"


def _take(key: str, kind: Kind) -> None:
    file = st.session_state[_widget(key)]
    if file is None or not own_code.allowed():
        return
    try:
        token = uploads.save(store.runs_dir(), kind, file.name, file, _used())
    except InvalidSpec as error:
        st.session_state["upload-told"] = False, str(error)
    else:
        st.session_state["upload-told"] = True, _filled(key, token)
    st.session_state[f"uploads-{key}"] = st.session_state.get(f"uploads-{key}", 0) + 1


def _filled(key: str, token: str) -> str:
    """Put an upload into its field; what was done, in words."""
    name = token.rpartition("/")[2]
    if key == "weights":
        _fill(weights=token)
        return f"{name} is the weights file now."
    if key == "pictures":
        _fill(data="folder:PATH", path=token)
        return f"Images come from {name} now."
    source = uploads.path_of(token, store.runs_dir()).read_text(encoding="utf-8")
    functions = uploads.functions(source)
    function = USUAL if USUAL in functions else functions[-1]
    _fill(model=own_names.PATTERN, name=f"{token}:{function}")
    others = [f for f in functions if f != function]
    more = f" Other functions in it: {', '.join(others[:5])}." if others else ""
    return f"The network is what {function}() of {name} returns.{more}"


def _fill(**values: str) -> None:
    """Set widgets, and the address for those that are not there yet: only others write into it."""
    for key, value in values.items():
        st.session_state[key] = value
        with suppress(StreamlitAPIException):  # bound to a widget that is there
            st.query_params[key] = value


def _tell() -> None:
    """What became of the last upload, once."""
    good, text = st.session_state.pop("upload-told", (True, ""))
    if not good:
        st.error(text, icon=":material/error:")
    elif text:
        st.success(text, icon=":material/upload_file:")


def _used() -> Iterator[str]:
    """Texts of all runs and jobs that may name uploads."""
    runs = store.runs_dir()
    specs: list[RunSpec] = [e.record.spec for e in store.list_runs(runs) if e.record]
    with suppress(InvalidSpec):
        specs += [job.spec for job in jobs.list_jobs(runs)]
    for spec in specs:
        yield f"{spec.model} {spec.weights} {spec.data} {spec.calib_data}"


def named(spec: RunSpec) -> RunSpec:
    """The specification with the paths of the uploads that it names.

    Raises:
        InvalidSpec: an upload is gone, or this visitor may not use any.
    """
    located = uploads.located(spec, store.runs_dir())
    if located != spec and not own_code.allowed():
        raise InvalidSpec(OFF)
    return located


def pathless(text: str) -> str:
    """A text without the server's paths of uploads."""
    return uploads.shown(text, store.runs_dir())
