"""Figures of stored runs, one file each: ``info`` makes the numbers, ``figure`` draws them.

Every figure's file has the same verbs. ``info(...)`` takes what a run stored (its record, rows,
events or counts) and returns a small dataclass; ``figure(info)`` returns a Plotly figure, with
``dark`` and ``large`` for a dark page or a room. ``headline(info)`` is the take-away as a sentence
and ``alt(info)`` the figure in words::

    from pathlib import Path

    from qlib import store
    from qlib.plots.compare import accuracy_vs_size

    folders = Path("assets/demo").glob("digits-vit_qdrop_*")
    info = accuracy_vs_size.info([store.load(folder) for folder in folders])
    accuracy_vs_size.figure(info).write_html("accuracy.html")
"""
