"""Lessons on the pages: a step as a card at the window's foot, the list, moving between steps."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import streamlit as st

from qlib.core.paths import PAGES
from qlib.core.records import InvalidSpec
from qlib.guide import facts, lessons
from qlib.guide.facts import Facts
from qlib.guide.lessons import Lesson, Step, Told
from qlib.store import Finished
from qlib.ui.shared import address, context, per_width, resolve, state
from qlib.ui.shared.answers import bits_label

A_ROW = 4  # cards of the list
FOLLOW = "pages/0_Lesson.py"  # the address that leads to a step
PARTS = {"titles": ".js-plotly-plot .g-gtitle"}  # what can be hidden and is no element of its own


def page_files() -> dict[str, str]:
    """Address of a page → its file: ``start`` → ``pages/1_Start.py``."""
    return {p.stem.split("_", 1)[1].lower(): f"pages/{p.name}" for p in PAGES.glob("[0-9]*.py")}


@st.cache_resource(max_entries=4, show_spinner=False)
def _every(folder: str, stamp: tuple) -> tuple[list[Lesson], list[str]]:
    return lessons.every(Path(folder))


def every() -> tuple[list[Lesson], list[str]]:
    """All lessons in their order, and what is wrong with files that cannot be used."""
    files = lessons.files()
    return _every(str(lessons.FOLDER), tuple((f.name, f.stat().st_mtime_ns) for f in files))


def current() -> tuple[Lesson | None, int]:
    """The lesson in the address and the place of its step, from 0; None without one."""
    name = st.query_params.get(address.LESSON, "")
    lesson = next((found for found in every()[0] if found.name == name), None)
    if lesson is None:
        return None, 0
    try:
        place = int(st.query_params.get(address.STEP, "1")) - 1
    except ValueError:
        place = 0
    return lesson, min(max(0, place), len(lesson.steps) - 1)


# ---- moving ----------------------------------------------------------------------------------


def follow() -> None:
    """Open the step that the address names, with exactly its settings; does not return then."""
    lesson, place = current()
    if lesson is None:
        return
    step = lesson.steps[place]
    file = page_files().get(step.page)
    if file is None:
        st.info(f"The lesson's page “{step.page}” is not part of this app.")
        return
    address.forget(widgets=True)
    here = {address.LESSON: lesson.name, address.STEP: str(place + 1)}
    st.switch_page(file, query_params=step.params | here)


def _go(lesson: Lesson, place: int) -> None:
    where = {address.LESSON: lesson.name, address.STEP: str(place + 1)}
    st.switch_page(FOLLOW, query_params=where)


def _leave() -> None:
    address.put(dict.fromkeys((address.LESSON, address.STEP, address.HIDE)))


def unknown() -> None:
    """Show that the lesson of the address does not exist, and which ones do."""
    name = st.query_params.get(address.LESSON)
    usable = every()[0]
    if not name or current()[0]:
        return
    others = ", ".join(f"*{lesson.title}* (`{lesson.name}`)" for lesson in usable)
    st.info(
        f"There is no lesson `{name}`" + (f"; there are {others}." if usable else "."),
        icon=":material/link_off:",
    )


# ---- the list --------------------------------------------------------------------------------


def listing() -> None:
    """Show a link per lesson with its promise; files that cannot be used are named."""
    usable, problems = every()
    # a row of columns at a time: the cards of a row are equally high
    cells = [cell for _ in range(0, len(usable), A_ROW) for cell in st.columns(A_ROW)]
    for place, (lesson, cell) in enumerate(zip(usable, cells, strict=False)):
        with cell, st.container(border=True, height="stretch", gap="xsmall", key=f"card-{place}"):
            st.page_link(
                FOLLOW,
                label=f"**{lesson.title}**",
                icon=":material/school:",
                query_params={address.LESSON: lesson.name, address.STEP: "1"},
            )
            st.caption(f"{lesson.promise} {len(lesson.steps)} steps.")
    for problem in problems:
        st.caption(f":material/heart_broken: {problem}")


# ---- the card --------------------------------------------------------------------------------


def card() -> None:
    """Show the card of the address's step and hide what it hides. Nothing without a lesson."""
    lesson, place = current()
    step = lesson.steps[place] if lesson else None
    guess = f"lesson-guess-{lesson.name if lesson else ''}-{place + 1}"
    guessed = st.session_state.get(guess) is not None
    mine = step.hidden(guessed=guessed) if step else ()
    _hide(lessons.hidden(st.query_params.get(address.HIDE, "")), mine)
    name = st.query_params.get(address.LESSON)
    if lesson is None or step is None:
        if name and address.page() != "lesson":
            unknown()
        return
    with st.bottom, st.container(key="lesson", border=True, gap="xsmall"):
        _head(lesson, place)
        if address.page() != step.page:
            st.markdown(f"This step is on the page *{step.page.capitalize()}*.")
            if st.button("Go there", key="lesson-back", icon=":material/undo:"):
                _go(lesson, place)
            return
        try:
            _body(lessons.tell(step, _facts(step)), guess)
        except InvalidSpec as error:
            st.caption(f"This step cannot be told from the runs that are stored here. {error}")


def _head(lesson: Lesson, place: int) -> None:
    last = len(lesson.steps) - 1
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        dots = "●" * (place + 1) + "○" * (last - place)
        st.markdown(f"**{lesson.title}** · step {place + 1} of {last + 1} {dots}")
        at_start = place == 0
        if st.button("Previous", key="lesson-previous", shortcut="PageUp", disabled=at_start):
            _go(lesson, place - 1)
        if place < last and st.button(
            "Next", key="lesson-next", shortcut="PageDown", type="primary"
        ):
            _go(lesson, place + 1)
        ends = place == last
        st.button(
            "Finish" if ends else "Leave",
            key="lesson-leave",
            on_click=_leave,
            type="primary" if ends else "tertiary",
            help="Keeps the view and takes the lesson away.",
        )


def _body(told: Told, key: str) -> None:
    st.markdown(told.text)
    if not told.question:
        return
    guess = st.pills(  # not a radio: while one has the focus, PageDown does not reach the page
        f"**{told.question}**",
        range(len(told.choices)),
        format_func=told.choices.__getitem__,
        key=key,
        persist_state="session",
    )
    if guess is None:
        return
    if guess == told.right:
        st.success(f"**Right.** {told.reveal}", icon=":material/check_circle:")
    else:
        right = told.choices[told.right]
        st.warning(f"**Answer: {right}.** {told.reveal}", icon=":material/lightbulb:")


def _hide(*lists) -> None:
    keys = [key for found in lists for key in lessons.hidden(found)]
    if keys:
        rules = ", ".join(PARTS.get(key, f".st-key-{key}") for key in keys)
        st.html(f"<style>{rules} {{ display: none !important; }}</style>")


def _facts(step: Step) -> Facts:
    runs = {name: _of({**step.params, **change}) for name, change in step.runs.items()}
    return _of(step.params).beside(runs)


def _of(params: Mapping[str, str]) -> Facts:
    """The numbers of the run that these address parameters show.

    Raises:
        InvalidSpec: there is no such run, or it cannot be read.
    """
    known = per_width.entries(context.entries())
    choice = resolve.choose(params, known, state.titles())
    if choice is None or choice.notes:
        raise InvalidSpec(" ".join(choice.notes) if choice else "There is no stored run.")
    record = state.record(choice.entry.folder)
    if other := _width(choice.entry, params.get("b"), known):
        record = replace(other.record, layers=record.layers)
    hist: Mapping[str, Any] = {}
    with suppress(InvalidSpec):
        hist = state.hist(choice.entry.folder)
    rows = []
    with suppress(InvalidSpec):
        analysed = context.profile_of(record)
        rows = state.profile(analysed.folder) if analysed else []
    noise = None
    with suppress(InvalidSpec):
        measured = state.noise_of(record.spec)
        noise = state.noise(measured.folder) if measured else None
    layer = params.get("layer", "")
    return facts.of(record, layer=layer, hist=hist, profile=rows, noise=noise)


def _width(entry: Finished, bits: str | None, known: Sequence[Finished]) -> Finished | None:
    """Of a network with many widths the one that is asked for, where it is not the run's own."""
    same = (e for e in known if e.key == entry.key and per_width.is_other(e))
    return next((e for e in same if bits_label(e.record) == bits), None)
