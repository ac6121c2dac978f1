"""What all pages share: style, sidebar, the navigation's list, and the head of a page."""

from urllib.parse import urlsplit

import pandas as pd
import streamlit as st
from streamlit.navigation.page import Page

from qlib import jobs, store
from qlib.core.paths import ASSETS
from qlib.core.records import InvalidSpec
from qlib.ui.shared import address, bar, state
from qlib.ui.shared.glossary import word
from qlib.ui.shared.timeline import span

ICON = str(ASSETS / "icon.svg")
POLL = 4.0  # seconds between looks at the queue from a page that shows no job


def first_visit() -> None:
    """Reload a link that is the very first request to a fresh server.

    Streamlit answers that one request by the folder ``pages/`` before it knows `st.navigation`,
    and tells the visitor that the page does not exist. The second request finds it.
    """
    path = urlsplit(st.context.url or "").path
    if _fresh().pop("fresh", False) and path.strip("/"):
        st.html("<script>location.reload()</script>", unsafe_allow_javascript=True)
        st.stop()


@st.cache_resource(show_spinner=False)
def _fresh() -> dict[str, bool]:
    """Process-wide; emptied by the first visit."""
    return {"fresh": True}


def style() -> None:
    """Write the name in the sidebar and the few styles that the theme cannot express."""
    st.logo(str(ASSETS / "logo.svg"), size="large", icon_image=ICON)
    st.html(ASSETS / "style.css")
    if state.presenting():
        st.html(ASSETS / "present.css")


def screen(name: str, icon: str, question: str, *, hidden: bool = False) -> Page:
    """The page of a file ``pages/NAME.py``: ``3_Run`` is called Run and lives at ``/run``.

    ``hidden``: it has an address, but does not stand in the navigation.
    """
    title = name.split("_", 1)[1]
    return st.Page(
        f"pages/{name}.py",
        title=title,
        icon=f":material/{icon}:",
        url_path=title.lower(),
        help=question,
        visibility="hidden" if hidden else "visible",
    )


def home(first: Page) -> Page:
    """The page at the root address: it leads to the first page, which has its own address."""

    def forward() -> None:
        st.switch_page(first, query_params=st.query_params.to_dict())

    return st.Page(forward, title="Home", url_path="home", default=True, visibility="hidden")


def head(question: str, answer: str = "") -> None:
    """Show the question as title, and below it the answer from the current data."""
    with st.container(key="head", gap="xsmall"):
        with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
            st.title(question, anchor=False, width="content")
            simulated()
        if answer:
            with st.container(key="answer"):  # a key of its own: lessons that ask hide it
                st.markdown(answer.replace(" %", "\u00a0%"))  # a number keeps its sign beside it


def simulated() -> None:
    """Show the badge on every page that says quantization is simulated."""
    st.badge(
        "simulated quantization", icon=":material/science:", color="gray", help=word("simulated")
    )


def sidebar(path: str) -> None:
    """Show running jobs below the navigation; tools, where the page has no context bar."""
    live = _live()
    with st.sidebar:
        st.fragment(_chips, run_every=POLL if live else None, key="chips")(bool(live))
    if path in address.WITHOUT:
        bar.tools({})


def _live() -> list[jobs.Job]:
    try:
        return [job for job in jobs.list_jobs(store.runs_dir()) if not job.over]
    except InvalidSpec:  # the runs folder cannot be written: there is no queue to show
        return []


def _chips(live: bool) -> None:
    now = _live()
    if live and not now:
        st.rerun()
    for job in now[:4]:
        spec = job.spec
        name = f"{state.titles().get(spec.method, spec.method)} W{spec.weight_bits}A{spec.act_bits}"
        stands = f"waiting, place {job.place}" if job.state == "queued" else job.state
        since = (job.last or {}).get("t")
        with st.container(key=f"chip-{job.key}", border=True, gap=None):
            st.page_link(
                "pages/3_Run.py",
                label=f"**{name}**",
                icon=":material/progress_activity:",
                query_params={"job": job.key},
                help=f"{spec.network} on {spec.images}: open the progress",
            )
            st.caption(f"{spec.network} · {stands}" + (f" · {span(since)}" if since else ""))
    if len(now) > 4:
        st.caption(f"and {len(now) - 4} more in the queue")


def try_this(*lines: str) -> None:
    """A box for what to look for and what to try."""
    with st.container(key="try-this", border=True):
        st.markdown("**What you see, what to try**\n\n" + "\n".join(f"- {x}" for x in lines))


def data_table(name: str, data: pd.DataFrame, columns: dict | None = None) -> None:
    """Show a figure's numbers on demand: what a screen reader reads.

    ``name`` is unique on its page; one of several words is shown as well.
    """
    title = f"Show the data: {name}" if " " in name else "Show the data"
    with st.expander(title, icon=":material/table_chart:", key=f"data-{name.replace(' ', '-')}"):
        st.dataframe(data, hide_index=True, column_config=columns, alt=f"Data of {name}")
