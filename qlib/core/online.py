"""Whether a server can be reached: asked before a download, as downloaders retry for a minute."""

from contextlib import suppress
from socket import create_connection
from threading import Thread
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass


def reachable(url: str, seconds: float = 4.0) -> bool:
    """Whether the server of ``url`` (or the proxy before it) accepts a connection in time."""
    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    if proxy and not proxy_bypass(parts.hostname or ""):
        parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    address = (parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443))
    answers = []

    def knock() -> None:
        with suppress(OSError):
            create_connection(address, seconds).close()
            answers.append(True)

    # looking up a name has no time limit of its own, so it happens beside
    thread = Thread(target=knock, daemon=True)
    thread.start()
    thread.join(seconds + 1)
    return bool(answers)
