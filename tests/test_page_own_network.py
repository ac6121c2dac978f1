"""An own network on the Run page: uploads and their refusals, the preview, and who may see them."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest
from test_pages import RUN, folders, open_page, texts  # noqa: F401
from test_uploads import CODE, packed

from qlib.core.preview import Preview, Shown
from qlib.core.records import InvalidSpec, RunSpec
from qlib.core.specs import absolute, checked
from qlib.live.preview import Stage
from qlib.store import uploads
from qlib.ui.run import form, preview, submit
from qlib.ui.run import uploads as fields
from qlib.ui.shared import own_code

NETS = Path(__file__).with_name("own_nets.py")
PIXELS = np.zeros((8, 8, 3), np.uint8)
SEEN = Preview(
    (Shown("a<b>/1.png", PIXELS, "a<b>", "c", 0.9), Shown("c/2.png", PIXELS, "c", "c", 0.8)),
    {"a<b>": 3, "c": 4}, 8, 7, "1 × 8 × 8, bilinear", "classes", 10, 0.97,
    ("layer matmul",), "", ("stem",), ("head",), (("one", "two"),), ("A note.",),
)  # fmt: skip


class FakePreviews:
    """Answers at once, or as it was told to."""

    def __init__(self, answer: Preview | InvalidSpec = SEEN, *, over: bool = True) -> None:
        self.answer, self.over, self.looks, self.dropped = answer, over, {}, []

    def get(self, key: str):
        return self.looks.get(key)

    def ask(self, key: str, spec: RunSpec) -> None:
        self.looks[key] = FakeLook(self.answer, self.over)

    def drop(self, key: str) -> None:
        self.dropped.append(key)
        self.looks.pop(key, None)


class FakeLook:
    stage = Stage("Loading PyTorch", 0, 3)

    def __init__(self, answer: Preview | InvalidSpec, over: bool) -> None:
        self.answer, self.over = answer, over

    @property
    def preview(self) -> Preview:
        if isinstance(self.answer, InvalidSpec):
            raise self.answer
        return self.answer


@pytest.fixture
def here(folders, monkeypatch) -> Path:  # noqa: F811
    """A visitor at the machine; the folder of own runs."""
    monkeypatch.setenv(own_code.OPT_IN, "1")
    return folders[1]


@pytest.fixture
def looking(monkeypatch):
    """Previews that come at once."""

    def use(*args, **more) -> FakePreviews:
        previews = FakePreviews(*args, **more)
        monkeypatch.setattr(preview, "shared", lambda: previews)
        return previews

    return use


def own(**more: str) -> AppTest:
    return open_page(RUN, model="FILE.py:BUILD", name=f"{NETS}:cnn", method="nearest", **more)


def uploader(at: AppTest, key: str):
    return next(f for f in at.file_uploader if (f.key or "").startswith(f"upload-{key}-"))


def upload(at: AppTest, key: str, name: str, body: bytes) -> AppTest:
    uploader(at, key).upload(name, body)
    at.run()
    assert not at.exception
    return at


# ---- uploads ---------------------------------------------------------------------------------


def test_uploads_fill_their_fields_without_paths(here):
    at = upload(open_page(RUN, method="nearest"), "network", "net.py", CODE + b"def other(): ...\n")
    assert at.selectbox(key="model").value == "FILE.py:BUILD"
    name = at.text_input(key="name").value
    assert uploads.TOKEN.match(name) and name.endswith("/net.py:build")
    assert "what build() of net.py returns" in texts(at) and "other" in texts(at)
    upload(at, "weights", "w.pth", b"weights")
    upload(at, "pictures", "a.zip", packed())
    assert uploads.TOKEN.fullmatch(at.text_input(key="weights").value)
    assert at.selectbox(key="data").value == "folder:PATH"
    assert uploads.TOKEN.fullmatch(at.text_input(key="path").value)
    assert str(here) not in texts(at) and not at.button(key="start").disabled
    kept = [at.query_params[name] for name in ("name", "path", "weights")]
    assert all(str(here) not in str(value) for value in kept)
    assert sorted(p.name for p in here.rglob("*.*") if p.is_file() and p.suffix) == [
        "a.zip", "net.py", "w.pth"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "name", "body", "words"),
    [
        ("network", "net.py", b"#" * (uploads.NETWORK.most + 1), "net.py is too large"),
        ("network", "net.py", b"def build(:", "no Python that can be run"),
        ("pictures", "a.zip", b"no zip", "no readable zip"),
    ],
)
def test_what_does_not_fit_is_a_sentence(key, name, body, words, here):
    at = open_page(RUN, method="nearest")
    before = at.selectbox(key="model").value, at.selectbox(key="data").value
    upload(at, key, name, body)
    assert any(words in error.value for error in at.error)
    assert (at.selectbox(key="model").value, at.selectbox(key="data").value) == before
    assert words not in texts(at.run())  # said once


def test_the_browser_offers_only_fitting_files(here):
    at = open_page(RUN, method="nearest")
    assert uploader(at, "network").allowed_type == [".py"]
    assert uploader(at, "pictures").allowed_type == [".zip"]
    assert ".safetensors" in uploader(at, "weights").allowed_type
    assert uploader(at, "weights").disabled  # digits networks come with theirs


def test_served_to_others_there_are_no_uploads(folders, monkeypatch):  # noqa: F811
    monkeypatch.setattr(own_code, "allowed", lambda: True)
    token = uploads.save(folders[1], uploads.PICTURES, "a.zip", _file(packed()))
    monkeypatch.setattr(own_code, "allowed", lambda: False)
    at = open_page(RUN, method="nearest")
    assert not at.file_uploader and fields.OFF in texts(at)
    at = open_page(RUN, method="nearest", data="folder:PATH", path=token)
    assert fields.OFF in texts(at) and at.button(key="start").disabled


def _file(body: bytes) -> io.BytesIO:
    return io.BytesIO(body)


def test_an_upload_that_is_gone_is_told(here):
    gone = "upload:0123456789abcdef/net.py:build"
    at = open_page(RUN, model="FILE.py:BUILD", name=gone, method="nearest")
    assert "The upload net.py is not here (any more)" in texts(at)
    assert at.button(key="start").disabled and at.button(key="preview-show").disabled


def test_back_to_the_form_names_uploads(here, monkeypatch):
    token = uploads.save(here, uploads.NETWORK, "net.py", _file(CODE))
    spec = uploads.located(RunSpec(f"{token}:build", "digits", "nearest"), here)
    box = {}
    monkeypatch.setattr(submit.st, "session_state", box)
    monkeypatch.setattr(submit.st, "query_params", {})
    form.again(absolute(checked(spec)))
    assert (box["model"], box["name"]) == ("FILE.py:BUILD", f"{token}:build")


# ---- preview ---------------------------------------------------------------------------------


def test_preview_is_made_on_request_and_shown(here, looking):
    previews = looking()
    at = own()
    assert not previews.looks  # a link runs nothing
    at.button(key="preview-show").click().run()
    assert not at.exception and len(previews.looks) == 1
    told = texts(at)
    assert "97.0 % of multiplications can be quantized; in float: layer matmul" in told
    assert "First layer: stem; last layer: head" in told and "one + two" in told
    assert "10 classes, 7 held-out pictures, 8 more to calibrate with" in told
    assert "c: 4" in told and "1 × 8 × 8" in told and "A note." in told
    assert not at.button(key="start").disabled
    at.segmented_control(key="w").set_value(3).run()
    assert "97.0 %" in texts(at)  # bits change nothing of it


def test_pictures_name_class_and_guess_as_text():
    shown = preview.pictures(SEEN)
    assert "a&lt;b&gt;" in shown and "<b>" not in shown
    assert shown.count("<figure") == 2 and "✕ c<br>90 %" in shown and "✓ c<br>80 %" in shown
    bare = preview.pictures(
        Preview((Shown("1.png", PIXELS, ""),), {}, 1, 1, "", "features", 0, 1.0)
    )
    assert "no label" in bare and "%</figcaption>" not in bare


def test_below_half_start_waits_for_the_switch(here, looking):
    words = "Only 12 % of this network's multiplications can be quantized"
    looking(replace(SEEN, share=0.12, refused=words))
    at = own()
    assert not at.button(key="start").disabled
    at.button(key="preview-show").click().run()
    assert f"{words}, or turn on *Allow a part in float*" in texts(at)
    assert at.button(key="start").disabled
    at.toggle(key="allow").set_value(True).run()
    assert not at.button(key="start").disabled and words not in texts(at)


def test_a_network_that_fails_is_a_sentence(here, looking):
    previews = looking(InvalidSpec("net.py stopped in line 3 with RuntimeError; mend it."))
    at = own()
    at.button(key="preview-show").click().run()
    assert any("stopped in line 3" in error.value for error in at.error)
    previews.answer = SEEN
    at.button(key="preview-again").click().run()
    assert "97.0 %" in texts(at)


def test_while_it_is_made_it_can_be_cancelled(here, looking):
    previews = looking(over=False)
    at = own()
    at.button(key="preview-show").click().run()
    assert "Loading PyTorch" in at.get("progress")[0].proto.text
    at.button(key="preview-cancel").click().run()
    assert previews.dropped and at.button(key="preview-show")


def test_another_preview_takes_the_place_of_one_under_way(here, looking):
    previews = looking(over=False)
    at = own()
    at.button(key="preview-show").click().run()
    (first,) = previews.looks
    at.text_input(key="name").set_value(f"{NETS}:transformer").run()
    at.button(key="preview-show").click().run()
    assert previews.dropped == [first] and len(previews.looks) == 1


def test_served_to_others_files_are_not_shown(folders, monkeypatch, looking, tmp_path):  # noqa: F811
    previews = looking()
    monkeypatch.setattr(own_code, "allowed", lambda: False)
    (tmp_path / "pictures").mkdir()
    at = open_page(RUN, method="nearest", data="folder:PATH", path=str(tmp_path / "pictures"))
    assert preview.OFF in texts(at) and at.button(key="preview-show").disabled
    at = open_page(RUN, method="nearest")
    assert not at.button(key="preview-show").disabled
    monkeypatch.setattr(preview.st, "session_state", {})
    preview._ask("key", RunSpec(f"{NETS}:cnn", "digits", "nearest"))
    assert (
        not previews.looks
        and "runs code of one's own" in preview.st.session_state["preview-refused"]
    )


def test_previews_come_from_one_place():
    root = NETS.parents[1]
    sources = [*(root / "qlib" / "ui").rglob("*.py"), *(root / "pages").glob("*.py")]
    asking = [p.name for p in sources if ".ask(key" in p.read_text()]
    assert asking == ["preview.py"]
