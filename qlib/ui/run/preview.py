"""The card that shows network and images before a run is started: pictures, guesses, coverage."""

import html
from collections.abc import Sequence
from pathlib import Path

import streamlit as st

from qlib.core.checks import plain
from qlib.core.preview import Preview, Shown, essence
from qlib.core.records import InvalidSpec, RunSpec
from qlib.live import missing
from qlib.live.preview import Look, Previews
from qlib.ui.run import uploads
from qlib.ui.shared import gallery, own_code

ABOUT = (
    "Eight pictures as the network sees them, what it takes them for in float, and which share of "
    "its multiplications can be quantized."
)
ALLOW = "turn on *Allow a part in float*, under *Own network and pictures*."
ALLOWED = "Less than half can be quantized: it goes on because *Allow a part in float* is on."
LOOK = 0.4  # seconds between looks at a preview that is being made
LISTED = 12  # names in one line
ASKED = "preview-asked"  # session key: the preview that this visitor waits for
OFF = "Files of this machine are shown only to a visitor at the machine itself."


@st.cache_resource(show_spinner=False)
def shared() -> Previews:
    """The previews of all visitors."""
    return Previews()


def card(spec: RunSpec | None) -> Preview | None:
    """Show the preview of a checked specification, or the button that asks for it.

    Returns it once it is there. Call it on every run of the page.
    """
    with st.container(border=True, key="preview"):
        st.markdown("**Preview**")
        why = missing() or _not_for_visitors(spec)
        key = "" if spec is None or why else _key(spec)
        look = shared().get(key) if key else None
        going = look is not None and not look.over
        watch = st.fragment(_watch, run_every=LOOK if going else None, key="preview-watch")
        watch(key if going else "")
        if look is None or spec is None:
            _offer(spec, key, why)
        elif not going:
            return _ended(look, spec, key)
    return None


def _not_for_visitors(spec: RunSpec | None) -> str:
    """Why a preview would show a visitor from elsewhere what he may not see, or ""."""
    paths = spec and (spec.weights or spec.classes or "/" in f"{spec.model}{spec.data}")
    return OFF if paths and not own_code.allowed() else ""


def _key(spec: RunSpec) -> str:
    return f"{essence(spec).key} {_stamp(spec)}"


def _stamp(spec: RunSpec) -> str:
    """Changes when a named weights file, folder or zip is replaced."""
    seen = []
    for name in (spec.weights, *(d and d.partition(":")[2] for d in (spec.data, spec.calib_data))):
        try:
            seen.append(Path(name).stat().st_mtime_ns if name else 0)
        except OSError:
            seen.append(0)
    return "-".join(map(str, seen))


def _offer(spec: RunSpec | None, key: str, why: str) -> None:
    if "preview-refused" in st.session_state:
        st.error(st.session_state.pop("preview-refused"), icon=":material/error:")
    st.caption(
        why
        or "Eight pictures as the network sees them, what it takes them for in float, and which "
        "share of its multiplications can be quantized."
    )
    st.button(
        "Show the preview",
        icon=":material/visibility:",
        width="stretch",
        disabled=spec is None or bool(why),
        key="preview-show",
        on_click=_ask,
        args=(key, spec),
        help="Builds the network in a process of its own; takes some seconds.",
    )


def _ask(key: str, spec: RunSpec) -> None:
    """Begin the preview; the one that this visitor waited for before is given up."""
    try:
        own_code.check(spec)
        if before := st.session_state.get(ASKED):
            shared().drop(before)
        st.session_state[ASKED] = key
        shared().ask(key, essence(spec))
    except InvalidSpec as error:
        st.session_state["preview-refused"] = str(error)


def _watch(key: str) -> None:
    """The step under way, and Cancel; the page runs once more when the preview is there."""
    if not key:
        return
    look = shared().get(key)
    if look is None or look.over:
        st.rerun()
    stage = look.stage
    st.progress(stage.done / stage.of, text=f"{stage.text} (step {stage.done + 1} of {stage.of})")
    st.button(
        "Cancel",
        icon=":material/stop_circle:",
        key="preview-cancel",
        on_click=shared().drop,
        args=(key,),
    )


def _ended(look: Look, spec: RunSpec, key: str) -> Preview | None:
    try:
        found = look.preview
    except InvalidSpec as error:
        st.error(plain(uploads.pathless(str(error))), icon=":material/error:")
        st.button("Try it again", key="preview-again", on_click=_ask, args=(key, spec))
        return None
    _show(found, spec)
    return found


def _show(found: Preview, spec: RunSpec) -> None:
    st.html(pictures(found))
    st.markdown(plain(covered(found)))
    if found.refused:
        st.warning(
            ALLOWED if spec.allow_float else f"{plain(found.refused)}, or {ALLOW}",
            icon=":material/warning:",
        )
    for line in about(found):
        st.caption(plain(line))
    if found.notes:
        with st.expander(
            f"Notes ({len(found.notes)})", icon=":material/info:", key="preview-notes"
        ):
            for note in found.notes:
                st.caption(plain(uploads.pathless(note)))


def covered(found: Preview) -> str:
    """Which share of the multiplications can be quantized, and what stays in float."""
    if not found.left_float:
        return "All multiplications can be quantized."
    share = 100 * found.share
    number = f"{share:.4g}" if share >= 99.95 else f"{share:.1f}"
    return (
        f"{number} % of multiplications can be quantized; in float: {_listed(found.left_float, 3)}."
    )


def about(found: Preview) -> list[str]:
    """Classes and counts, preparation, layers at the ends, units that are joined: a line each."""
    classes = f"{found.outputs:,} classes, " if found.outputs else ""
    lines = [f"{classes}{found.test:,} held-out pictures, {found.calib:,} more to calibrate with."]
    if found.counts:
        lines[0] += f" Held out: {_listed([f'{k}: {n:,}' for k, n in found.counts.items()])}."
    elif found.task == "unlabelled":
        lines[0] += " They have no labels, so no accuracy will be told."
    if found.task == "features":
        lines.append("It returns features: they are compared with the float ones.")
    lines.append(f"Pictures as the network takes them: {found.prepared}.")
    ends = (("First", found.first), ("last", found.last))
    lines.append(
        "; ".join(f"{name} layer{'s' * (len(n) > 1)}: {_listed(n, 3)}" for name, n in ends) + "."
    )
    if found.joined:
        rows = [" + ".join(row) for row in found.joined]
        lines.append(f"Learned together: {_listed(rows, 3)}.")
    return lines


def _listed(names: Sequence[str], most: int = LISTED) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join([*names][:most]) + more


def pictures(found: Preview) -> str:
    """HTML of the pictures, each with the float network's guess; texts of files are escaped."""
    body = "".join(_picture(picture) for picture in found.pictures)
    return f'{STYLE}<div class="qx-preview" role="list">{body}</div>'


def _picture(picture: Shown) -> str:
    label, guess = html.escape(picture.label), html.escape(picture.guess)
    mark = ""
    if guess and label:
        mark = "✓ " if picture.guess == picture.label else "✕ "
    said = f"{mark}{guess}<br>{100 * picture.prob:.0f} %" if guess else label
    small = " class=small" if max(picture.pixels.shape[:2]) <= gallery.FEW else ""
    told = f"{html.escape(picture.name)}: {label or 'no label'}; float guess: {guess or 'none'}"
    return (
        f'<figure role="listitem" title="{told}"><img{small} src="{gallery.png(picture.pixels)}" '
        f'alt="{told}"><figcaption class="{"no" if mark == "✕ " else ""}">{said}</figcaption>'
        "</figure>"
    )


STYLE = """<style>
.qx-preview { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 6px; }
.qx-preview figure { margin: 0; min-width: 0; }
.qx-preview img { width: 100%; aspect-ratio: 1; object-fit: contain; border-radius: 4px;
  display: block; background: color-mix(in srgb, currentColor 8%, transparent); }
.qx-preview img.small { image-rendering: pixelated; }
.qx-preview figcaption { font-size: 0.75rem; line-height: 1.3; text-align: center; overflow: hidden;
  text-overflow: ellipsis; white-space: nowrap; }
.qx-preview .no { color: #D6455D; }
</style>"""
