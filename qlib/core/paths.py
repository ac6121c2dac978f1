"""Where the app's own files lie: the pages, and what is shipped with them."""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_SHIPPED = _PACKAGE / "_shipped"  # an installed package carries them inside

ROOT = _SHIPPED if _SHIPPED.is_dir() else _PACKAGE.parent
APP = ROOT / "app.py"
PAGES = ROOT / "pages"
ASSETS = ROOT / "assets"
