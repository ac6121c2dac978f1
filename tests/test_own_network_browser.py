"""An own network through the app, as a person does it: upload, look, start, see the result."""

import io
import zipfile
from pathlib import Path

import pytest
from browser_kit import chromium, serving, settled, window  # noqa: F401 (fixtures)
from PIL import Image

from qlib import store

pytestmark = pytest.mark.browser
PATIENCE = 120_000  # ms: a process that loads PyTorch, on a busy machine
NET = b"""
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    '''One layer, then attention over the places, written with calls.'''
    def __init__(self):
        super().__init__()
        self.stem, self.qkv, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.head((x + F.scaled_dot_product_attention(q, k, v)).mean(1))

def build():
    return Net(), {"input_size": (3, 16, 16)}
"""
FORM = "run?method=brecq&calib=8&brecq.steps=2&brecq.act_steps=2&test=12&brecq.batch=8"
COLOURS = {"blue": (0, 0, 250), "green": (0, 250, 0), "red": (250, 0, 0)}


@pytest.fixture(scope="module")
def server(tmp_path_factory, chromium):  # noqa: F811
    demo = tmp_path_factory.mktemp("demo")
    with serving(tmp_path_factory.mktemp("home"), demo) as running:
        yield running


def pictures() -> bytes:
    """A zip of three class folders, eight pictures each."""
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        for name, colour in COLOURS.items():
            for i in range(8):
                one = io.BytesIO()
                Image.new("RGB", (20 + i, 16), colour).save(one, "PNG")
                archive.writestr(f"colours/{name}/{i}.png", one.getvalue())
    return body.getvalue()


def upload(page, key: str, name: str, body: bytes, told: str) -> None:
    chooser = page.locator(f"[class*=st-key-upload-{key}-] input[type=file]")
    chooser.set_input_files({"name": name, "mimeType": "application/octet-stream", "buffer": body})
    page.get_by_text(told).wait_for()


def test_own_network_from_upload_to_result(server, window, tmp_path: Path):  # noqa: F811
    page = window.open(server.url(FORM), height=900)
    page.get_by_text("Own network and pictures").click()
    upload(page, "network", "mine.py", NET, "what build() of mine.py returns")
    upload(page, "pictures", "colours.zip", pictures(), "Images come from colours.zip")
    page.get_by_role("button", name="Show the preview").click()
    page.wait_for_selector(".qx-preview img", timeout=PATIENCE)
    assert page.locator(".qx-preview img").count() == 8
    card = page.locator(".st-key-preview").inner_text()
    assert "All multiplications can be quantized." in card
    assert "3 classes, 16 held-out pictures, 8 more to calibrate with" in card
    page.get_by_role("button", name="Start", exact=True).click()
    page.get_by_text("done", exact=True).wait_for(timeout=PATIENCE)
    settled(page)
    told = page.locator("[data-testid=stMain]").inner_text()
    assert "mine.py:build" in told and str(server.runs) not in told
    (run,) = (e for e in store.list_runs(server.runs) if e.record)
    assert run.record.coverage["quantized"] == 1 and run.record.metrics["n"] == 12
    page.goto(server.url(f"reconstruction?run={run.key}"))
    settled(page)
    assert page.locator("[data-testid=stException]").count() == 0
    page.goto(server.url("run?" + "model=FILE.py%3ABUILD&name=" + "upload:0123456789abcdef/a.py:b"))
    page.get_by_text("The upload a.py is not here").wait_for()
