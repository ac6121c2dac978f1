"""Which method should I choose? Stored and own runs side by side, with their intervals."""

import streamlit as st

from qlib.plots import _theme, accuracy_vs_size
from qlib.ui import answers, compare, frame, state

QUESTION = "Which method should I choose?"

known = compare.handles(state.everything())
if not known:
    frame.head(QUESTION)
    st.info("There is no finished run to compare yet.", icon=":material/inventory_2:")
    st.page_link("pages/3_Run.py", label="Make a run", icon=":material/play_circle:")
    compare.broken()
    st.stop()

top = st.container()
picked = compare.choose(known)
records = [known[name].record for name in picked]
titles = state.titles()

if records:
    fair = not compare.unlike_banner(records)
    with top:
        plain = "These runs were made under different conditions; look at what differs below."
        frame.head(QUESTION, answers.verdict(records, titles) if fair else plain)
    costs = {"time": "Time", "size": "Size", "bops": "Bit-operations"}
    cost = st.segmented_control(
        "Cost to compare with",
        list(costs),
        format_func=costs.get,
        default="time",
        required=True,
        key="x",
        bind="query-params",
    )
    info = accuracy_vs_size.info(records, cost=cost or "time", titles=titles, fair=fair)
    st.plotly_chart(
        accuracy_vs_size.figure(info, dark=state.dark()),
        key="scatter",
        config=_theme.config(f"accuracy_vs_{cost}"),
        alt=accuracy_vs_size.alt(info),
    )
    st.caption(answers.source_line(records[0]) + (" (of the first run)." if not fair else "."))
    st.subheader("What differs", anchor=False)
    compare.differences(records, picked)
else:
    with top:
        frame.head(QUESTION, "Choose runs to see what separates them.")

st.subheader("All runs", anchor=False)
names = compare.filtered(known, picked)
compare.table(known, names, picked)
st.download_button(
    "Download the chosen runs (CSV)" if picked else "Download all runs (CSV)",
    lambda: compare.csv(known, picked or list(known)),
    file_name="quant-explorer_runs.csv",
    mime="text/csv",
    icon=":material/download:",
    on_click="ignore",
    key="csv",
)
compare.broken()
