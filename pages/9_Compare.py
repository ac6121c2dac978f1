"""Which method should I choose? Stored and own runs side by side, image by image."""

import streamlit as st

from qlib.plots.compare import accuracy_vs_size, flips_bars
from qlib.ui.compare import images, overlay, ranking, runs_table, selection
from qlib.ui.shared import answers, context, export, frame, state
from qlib.ui.shared.comparable import unlike
from qlib.ui.shared.glossary import word

QUESTION = "Which method should I choose?"

known = selection.handles(state.everything())
top = st.container()
view = context.view(layers=False) if known else None
if view is None:
    with top:
        frame.head(QUESTION)
        if not known:
            st.info("There is no finished run to compare yet.", icon=":material/inventory_2:")
            st.page_link("pages/3_Run.py", label="Make a run", icon=":material/play_circle:")
    runs_table.broken()
    st.stop()

picked = selection.choose(known, view.record)
cost, others, fewest = selection.controls()
picked = selection.enough(known, picked, fewest)
names = runs_table.listed(known, picked, fewest)
look = {"dark": state.dark(), "large": state.presenting()}
titles = state.titles()

every = [known[name] for name in picked]
scored = selection.scored(known, picked)
if scored:
    entries = [known[name] for name in scored]
    records = [e.record for e in entries]
    fair = not unlike(records)
    preds = images.predictions(entries)
    ranks = ranking.rank(records, preds)
    with top:
        frame.head(QUESTION, ranking.verdict(ranks, titles) if fair else "")
        selection.unlike_banner(records)

    behind = selection.behind(known, names, picked) if others else []
    info = accuracy_vs_size.info(
        records, cost=cost, titles=titles, fair=fair, others=behind, apart=ranks.apart
    )
    scatter = accuracy_vs_size.figure(info, **look)
    name = f"accuracy_vs_{cost}"
    st.plotly_chart(
        scatter,
        key=selection.SCATTER,
        on_select=selection.followed,
        selection_mode=("points", "box"),
        config=export.config(name, records, box=True),
        alt=accuracy_vs_size.alt(info),
    )
    selection.tell_full()
    data = runs_table.frame(known, scored)
    source, save = st.columns([7, 1], vertical_alignment="center")
    source.caption(answers.source_line(records[0]) + (" (of the first run)." if not fair else "."))
    with save:
        export.menu(name, scatter, data, records, alt=accuracy_vs_size.alt(info))
else:
    with top:
        told = "These runs have no accuracy to compare: see the table." if picked else ""
        frame.head(QUESTION, told or "Choose runs to see what separates them.")
    entries, records, preds, ranks = [], [], {}, None

changes = images.flips(entries, preds)
if changes:
    left, right = st.columns(2, gap="medium")
    with left:
        bars = flips_bars.figure(changes, **look)
        st.plotly_chart(
            bars,
            key=images.FLIPS,
            on_select=images.clicked,
            selection_mode="points",
            config=export.config("flips", records),
            alt=flips_bars.alt(changes),
        )
        images.save(bars, changes, records)
    with right:
        st.subheader("Image by image", anchor=False, help=word("lost"))
        chosen = images.follow(scored, entries, preds, view.record.spec.key)
    images.pictures(chosen, entries, preds)

if len(records) > 1:
    st.subheader("Two runs on the same images", anchor=False, help=word("paired"))
    images.duel(scored, entries, preds)
    if ranks and ranks.pairs:
        with st.expander(f"Every pair ({len(ranks.pairs)})", icon=":material/table_chart:"):
            st.dataframe(images.every_pair(ranks), hide_index=True, alt="Paired tests")
            st.caption(word("holm"))

if every:
    st.subheader("Layer by layer", anchor=False, help=word("SQNR"))
    overlay.show(every, **look)
if len(every) > 1:
    runs_table.differences([e.record for e in every], picked)

st.subheader("All runs", anchor=False)
runs_table.filters(known)
runs_table.table(known, names, picked)
runs_table.broken()
frame.try_this(
    "Runs whose difference is within chance are not ranked: more test images, or fewer bits, "
    "tell them apart.",
    "Switch on *Show the other runs too*; click a point to compare it, drag a box to list runs.",
    "Look at the pictures that changed: are they hard for you as well?",
)
