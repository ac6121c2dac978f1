"""Cards for one run that finished, and for one that did not."""

from collections.abc import Mapping, Sequence

import streamlit as st

from qlib.core.checks import plain
from qlib.core.records import BASELINE, RunRecord
from qlib.core.scores import score
from qlib.export.summary import covered
from qlib.jobs import Job
from qlib.ui.shared import answers
from qlib.ui.shared.glossary import word

KEPT = "Results of finished runs, and this run's log and events, are kept."


def result(record: RunRecord) -> None:
    """Show the run's score with its interval, the baselines, flips and size."""
    facts = [*_judged(record), _size(record)]
    with st.container(border=True, key="result"):
        for cell, (name, value, note, term) in zip(st.columns(len(facts)), facts, strict=True):
            cell.metric(name, value, note, delta_color="off", delta_arrow="off", help=word(term))
        st.caption(f"{answers.source_line(record)}.")
        for doubt in record.doubts:
            st.warning(plain(f"{doubt['text']} {doubt['remedy']}"), icon=":material/warning:")
        if text := covered(record):
            st.caption(f":material/function: {text[0].upper()}{text[1:]}.")
        if record.prepared:
            st.caption(f"Images as the network takes them: {record.prepared}.")
        for note in record.notes:
            st.caption(f":material/info: {plain(note)}")


Fact = tuple[str, str, str, str]  # name, value, note, term of the glossary


def _judged(record: RunRecord) -> list[Fact]:
    """What the run is judged by, its baselines, and the other numbers of its kind."""
    m, main = record.metrics, score(record.metrics)
    if main is None:
        return []
    facts = [(main.name, main.text(main.value), f"95 %: {main.interval}", main.term)]
    if main.reference is not None:
        against = gap(main.value - main.reference, "against")
        facts.append(("Float model", main.text(main.reference), against, "float model"))
    if main.nearest is not None:
        over = gap(main.value - main.nearest, "over") if main.percent else ""
        note = "this run" if record.spec.method == BASELINE else over or "for comparison"
        facts.append(("Nearest rounding", main.text(main.nearest), note, "nearest rounding"))
    if record.task == "features":
        facts += _features(m, main.percent)
    elif record.task == "unlabelled":
        facts.append(("KL to float", f"{m['kl']:.2g} nats", "no labels: no accuracy", "KL"))
    else:
        facts.append(("Agreement", f"{m['agreement']:.1f} %", "with the float model", "agreement"))
    if "lost" in m and len(facts) < 5:
        counts = f"{int(m['lost'])} / {int(m['gained'])}"
        facts.append(("Lost / gained", counts, f"of {int(m['n']):,} images", "lost"))
    return facts


def _features(m: Mapping[str, float], voted: bool) -> list[Fact]:
    worst = f"5th percentile {m['cosine_p5']:.4f}"
    cosine = ("Cosine to float", f"{m['cosine']:.4f}", worst, "cosine of features")
    cka = ("CKA", f"{m['cka']:.4f}", "with the float features", "CKA")
    return [cosine, cka] if voted else [("5th percentile", f"{m['cosine_p5']:.4f}", "of the cosine",
                                         "cosine of features"), cka]  # fmt: skip


def _size(record: RunRecord) -> Fact:
    m = record.metrics
    return "Weights", f"{m['weight_mb']:.3g} MB", f"float {m['weight_mb_float']:.3g} MB", "size"


def gap(value: float, word: str) -> str:
    """A difference in words: ``+1.2 points WORD it``, or that there is no difference."""
    if abs(value) < 0.05:
        return "the same"
    return f"{value:+.1f} points {word} it".replace("-", "−")


def ended_badly(job: Job) -> None:
    """Show what happened to a job, what is kept, what to try; the log to take away."""
    heads = {
        "failed": ("The run was refused", "error"),
        "crashed": ("The run's process died", "warning"),
        "cancelled": ("The run was cancelled", "cancel"),
    }
    head, icon = heads[job.state]
    with st.container(border=True, key="ended"):
        st.markdown(f"#### :material/{icon}: {head}")
        st.markdown(f"**What happened.** {job.message or 'It stopped when asked to.'}")
        st.markdown(f"**What is kept.** {KEPT}")
        st.markdown(f"**What to try.** {_advice(job)}")
        if job.log.is_file():
            st.download_button(
                "Download the log",
                job.log.read_bytes,
                file_name=f"{job.key}_log.txt",
                mime="text/plain",
                icon=":material/download:",
                on_click="ignore",
                key="log",
            )


def _advice(job: Job) -> str:
    text = job.message.lower()
    if job.state == "cancelled":
        return "Change the settings below, or start the same run again."
    if "memory" in text or "killed" in text or job.state == "crashed":
        return (
            "Often memory ran out: use fewer calibration images or a smaller batch, then start it "
            "again. If it dies once more, the log says more."
        )
    return "Change what the sentence names, then start it again."


def unreadable(problems: Sequence[str], what: str = "Folders") -> None:
    """Show folders that look like runs or jobs and are none, with reasons; else nothing."""
    if problems:
        head = f"{what} that cannot be read ({len(problems)})"
        with st.expander(head, icon=":material/heart_broken:"):
            st.markdown("\n".join(f"- {problem}" for problem in problems))
