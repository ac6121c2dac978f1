"""Whether a visitor may have the machine run a Python file: only who sits at it, by default.

A key such as ``net.py:build`` names code. An address or a form must never run it on an app that is
served to others, so everything in the app that starts a job or loads a run asks here first.
"""

import os
from urllib.parse import urlsplit

import streamlit as st

from qlib.core import own_code
from qlib.core.records import InvalidSpec, RunSpec

LOCAL = ("localhost", "127.0.0.1", "::1")
FORWARDED = ("X-Forwarded-For", "X-Forwarded-Host", "X-Real-Ip", "Forwarded", "Via")
OPT_IN = "QLIB_OWN_CODE"  # 1: whoever started the app allows it to every visitor


def check(spec: RunSpec) -> None:
    """Refuse a network that is a Python file, to visitors who may not run code here.

    Raises:
        InvalidSpec: the network is code, and this visitor may not run code here; or a file of
            classes is named, whose lines messages would show.
    """
    if spec.classes and not allowed():
        raise InvalidSpec(
            "This app reads a file of classes only for a visitor at the machine itself; use python "
            f"-m qlib run there, or start the app with {OPT_IN}=1."
        )
    if own_code.is_own(spec.model) and not allowed():
        raise InvalidSpec(
            f"{spec.model} is code, and this app runs code of one's own only for a visitor at the "
            f"machine itself; use python -m qlib run there, or start the app with {OPT_IN}=1."
        )


def allowed() -> bool:
    """Whether the visitor sits at this machine: it listens locally and came straight from here."""
    if os.environ.get(OPT_IN) == "1":
        return True
    headers = st.context.headers
    host = urlsplit(f"//{headers.get('Host', '')}").hostname
    return (
        st.get_option("server.address") in LOCAL
        and host in LOCAL
        and st.context.ip_address is None  # as Streamlit tells of a visitor from this machine
        and not any(name in headers for name in FORWARDED)
    )
