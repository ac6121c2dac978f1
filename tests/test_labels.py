"""Labels that do not fit: chance is noticed, another order of classes is found, a file gives it."""

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
from test_datasets import make_folder, png

from qlib.__main__ import main
from qlib.core import class_order, specs
from qlib.core.records import InvalidSpec, RunRecord, RunSpec
from qlib.datasets.digits import Digits
from qlib.datasets.folder import Folder
from qlib.export import report
from qlib.guide import findings
from qlib.measure import labels
from qlib.pipeline.run import run
from qlib.pipeline.sources import class_names, open_sources

CLASSES = 10
SHIFT = (3, 7, 0, 9, 1, 5, 2, 8, 6, 4)  # class -> the folder's number


# ---- chance -------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("n", [5, 24, 100, 300])
def test_chance_is_what_the_exact_tests_say(classes: int, n: int) -> None:
    halfway = (1 + 1 / classes) / 2
    for right in range(0, n + 1, max(1, n // 50)):
        above = binomtest(right, n, 1 / classes, "greater").pvalue <= labels.RARE
        weak = binomtest(right, n, halfway, "less").pvalue < labels.POWER
        assert labels.is_chance(right, n, classes) == (weak and not above)


@pytest.mark.parametrize(
    ("right", "n", "classes", "chance"),
    [
        (30, 300, 10, True),  # 10 %
        (31, 300, 10, True),  # 10.2 %: one weight of 1e4 among small ones
        (0, 300, 10, True),  # below
        (60, 300, 10, False),  # 20 %: poor, and above
        (275, 300, 10, False),
        (1, 2, 2, False),  # too few to say
        (0, 3, 10, False),
        (0, 20, 10, True),
        (5, 5, 1, False),  # one class has no chance
        (0, 0, 10, False),
        (2, 650, 1000, True),
        (20, 650, 1000, False),
    ],
)
def test_chance_and_few_images(right: int, n: int, classes: int, chance: bool) -> None:
    assert labels.is_chance(right, n, classes) is chance


# ---- other orders -------------------------------------------------------------------------------


def answers(n: int, accuracy: float, classes: int = CLASSES, seed: int = 0):
    """True classes of ``n`` images, and a network's guesses that are right with this chance."""
    draw = np.random.default_rng(seed)
    true = np.arange(n) % classes
    wrong = (true + draw.integers(1, classes, n)) % classes
    return true, np.where(draw.random(n) < accuracy, true, wrong)


def test_the_best_order_is_the_best_of_all() -> None:
    draw = np.random.default_rng(1)
    for _ in range(20):
        given, guesses = draw.integers(0, 5, 40), draw.integers(0, 5, 40)
        order = labels.best_order(given, guesses)
        hits = sum(order[a] == b for a, b in zip(given, guesses, strict=True))
        assert len(set(order.values())) == len(order)
        assert hits == max(
            sum(p[a] == b for a, b in zip(given, guesses, strict=True))
            for p in itertools.permutations(range(5))
        )


@pytest.mark.parametrize("accuracy", [0.55, 0.92])
@pytest.mark.parametrize("swapped", ["all", "as text", "two"])
def test_a_wrong_order_is_found_and_its_accuracy_is_the_networks(swapped, accuracy) -> None:
    text = [int(name) - 1 for name in sorted(str(i) for i in range(1, 11))]  # 10 before 2
    given = {"all": list(SHIFT), "as text": [text.index(i) for i in range(10)],
             "two": [1, 0, *range(2, 10)]}[swapped]  # fmt: skip
    true, guesses = answers(400, accuracy)
    fit = labels.fit(np.array(given)[true], guesses, CLASSES)
    assert fit.doubtful
    assert fit.at_chance == (swapped != "two")
    assert fit.order == {label: true for true, label in enumerate(given)}
    assert fit.reordered == pytest.approx(100 * (guesses == true).mean(), abs=3)


@pytest.mark.parametrize("seed", range(8))
def test_no_order_is_seen_in_noise(seed: int) -> None:
    draw = np.random.default_rng(seed)
    for n in (40, 100, 300, 1000):
        given, guesses = draw.integers(0, 10, n), draw.integers(0, 10, n)
        fit = labels.fit(given, guesses, CLASSES)
        assert fit.order == {}
        best = labels.best_order(given, guesses)
        flattering = np.mean([best[a] == b for a, b in zip(given, guesses, strict=True)])
        assert fit.reordered is not None
        assert fit.reordered / 100 < flattering  # what it would be without halves


@pytest.mark.parametrize("accuracy", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_labels_that_fit_raise_no_doubt(accuracy: float, classes: int) -> None:
    true, guesses = answers(1000, max(accuracy, 1.2 / classes), classes)
    fit = labels.fit(true, guesses, classes)
    assert not fit.doubtful
    assert fit.accuracy == pytest.approx(100 * (true == guesses).mean())


def test_few_images_of_each_class_try_no_order() -> None:
    true, guesses = answers(300, 0.9, 100)
    fit = labels.fit((true + 1) % 100, guesses, 100)
    assert fit.at_chance
    assert fit.reordered is None
    assert fit.order == {}


def test_some_of_many_classes_are_found_among_the_outputs() -> None:
    true, guesses = answers(200, 0.9)
    outputs = np.array([17, 999, 3, 250, 400, 8, 77, 600, 31, 5])
    fit = labels.fit(true, outputs[guesses], 1000)
    assert fit.order == dict(enumerate(outputs.tolist()))


# ---- the file of classes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("cat\ndog\n", {"cat": 0, "dog": 1}),
        ("cat\n\ndog", {"cat": 0, "dog": 2}),  # output 1 has no folder
        ("﻿cat\r\ndog, big\r\n\r\n", {"cat": 0, "dog, big": 1}),
        ("cat,5\ndog\t0\n\nbig dog , 0\n", {"cat": 5, "dog": 0, "big dog": 0}),
        ("10\n2\n", {"10": 0, "2": 1}),
    ],
)
def test_two_ways_to_write_an_order(tmp_path: Path, text: str, order: dict[str, int]) -> None:
    file = tmp_path / "classes.txt"
    file.write_bytes(text.encode())
    assert class_order.read(file) == order


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty; write one folder name a line"),
        (b"\n \n", "is empty"),
        (b"cat,1\ndog\n", r"Line 2 of the file of classes .* has no index \('dog'\), while other"),
        (b"cat\ncat\n", "names the folder 'cat' twice; name it once"),
        (b"cat,9999999\n", "gives 'cat' the index 9,999,999, and at most 999,999 is allowed"),
        (b"caf\xe9\n", r"is no UTF-8 text \(byte 3\); save it as UTF-8"),
        (bytes(6 * 2**20), "has 6,291,456 bytes, and at most 5,242,880 are read"),
        (None, "is not there; write one folder name a line"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path: Path, content: bytes | None, words: str) -> None:
    file = tmp_path / "classes.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidSpec, match=words) as caught:
        specs.absolute(RunSpec("digits-vit", "digits", "nearest", classes=str(file)))
    assert "\n" not in str(caught.value)


def test_the_content_is_part_of_the_key(tmp_path: Path) -> None:
    file, spec = tmp_path / "a.txt", RunSpec("digits-vit", "digits", "nearest")
    file.write_text("a\nb\n")
    one = specs.absolute(replace(spec, classes=str(file)))
    file.write_text("b\na\n")
    other = specs.absolute(replace(spec, classes=str(file)))
    assert len({spec.key, one.key, other.key}) == 3
    assert specs.absolute(spec).key == spec.key  # no file: as before
    with pytest.raises(InvalidSpec, match=r"a.txt has changed since this run was asked for"):
        open_sources(one)


def pictures_in(root: Path, folders: list[str], n: int = 2) -> Path:
    members = {f"{f}/{i}.png": png(7 * k + i) for k, f in enumerate(folders) for i in range(n)}
    return make_folder(root, members)


def test_a_file_numbers_some_folders_of_a_larger_task(tmp_path: Path) -> None:
    data = Folder(f"folder:{pictures_in(tmp_path / 'd', ['cat', 'dog', 'thumbs'])}")
    data.use_classes({"dog": 1, "cat": 4, "owl": 0})
    test = data.test()
    assert dict(zip((i.split("/")[0] for i in test.ids), test.labels, strict=True)) == {
        "cat": 4,
        "dog": 1,
    }
    assert data.note["unnamed"] == {"thumbs": 2}
    spec = RunSpec("digits-vit", "folder:d", "nearest", classes="f.txt")
    assert class_names(data, spec, 6) == ("class 0", "dog", "class 2", "class 3", "cat", "class 5")
    with pytest.raises(InvalidSpec, match="gives 'cat' the index 4, and digits-vit has 4 outputs,"):
        class_names(data, spec, 4)
    with pytest.raises(InvalidSpec, match=r"names none of the folders in .*: it has a, b, and"):
        data.use_classes({"a": 0, "b": 1})


def test_sources_with_an_order_of_their_own_take_no_file() -> None:
    with pytest.raises(InvalidSpec, match="has its own order of classes"):
        Digits().use_classes({"0": 0})


# ---- the whole way ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[[int], str]], Path]:
    """A maker of folders of 300 real digits, each class in the folder that a function names."""
    images = Digits().test()
    first = {c: np.flatnonzero(images.labels == c)[:30] for c in range(CLASSES)}

    def make(name: Callable[[int], str]) -> Path:
        root = tmp_path_factory.mktemp("digits")
        for c, rows in first.items():
            (root / name(c)).mkdir()
            for row in rows:
                images.image(int(row)).save(root / name(c) / f"{row}.png")
        return root

    return make


def spec_of(data: Path, **changes) -> RunSpec:
    return specs.absolute(
        specs.checked(
            RunSpec("digits-resnet", f"folder:{data}", "nearest", 8, 8, calib=16, **changes)
        )
    )


def test_another_order_is_detected_told_and_mended(digits, tmp_path, capfd) -> None:
    data = digits(lambda c: str(SHIFT[c]))
    words = ["--model", "digits-resnet", "--data", f"folder:{data}", "--method", "nearest"]
    words += ["--weight-bits", "8", "--act-bits", "8", "--calib", "16", "--runs", str(tmp_path)]
    assert main(["run", *words, "--json"]) == 0
    out, err = capfd.readouterr()
    (doubt,) = json.loads(out)["doubts"]
    assert doubt["name"] == "labels"
    assert doubt["top1_reordered"] > 90
    assert json.loads(out)["metrics"]["top1_float"] < 20
    (line,) = [line for line in err.splitlines() if line.startswith("Careful: ")]
    for word in ("at or below chance", "labels or preprocessing probably do not fit", "0 = 0",
                 f"another order of classes it would be {doubt['top1_reordered']:.1f} %",
                 "--classes FILE"):  # fmt: skip
        assert word in line
    folder = json.loads(out)["run_dir"]
    assert main(["show", folder]) == 0
    assert "doubt      The float network is right on" in capfd.readouterr().out

    file = tmp_path / "classes.txt"  # what the record lists is what mends it
    file.write_text("\n".join(doubt["order"]))
    assert main(["run", *words, "--json", "--classes", str(file)]) == 0
    out, err = capfd.readouterr()
    mended = json.loads(out)
    assert mended["doubts"] == []
    assert "Careful" not in err
    assert mended["metrics"]["top1_float"] > 90
    assert mended["pictures"]["order"] == "file"


def test_one_to_ten_is_right_by_itself(digits) -> None:
    record = run(spec_of(digits(lambda c: str(c + 1))))
    assert record.metrics["top1_float"] > 90
    assert record.doubts == []
    assert record.pictures["order"] == "numbers"
    assert record.pictures["classes"] == ["1", "2", "3", "4", "5"]
    assert any("by the numbers" in note for note in record.notes)


def doubtful() -> RunRecord:
    metrics = {"top1": 9.0, "top1_low": 7.0, "top1_high": 12.0, "top1_float": 9.0, "n": 300.0}
    metrics |= {"top1_nearest": 9.0, "agreement": 99.0, "lost": 0, "gained": 0, "kl": 0.1}
    metrics |= {"weight_mb": 1.0, "weight_mb_float": 4.0, "gbops": 1.0}
    doubts = [{"name": "labels", "text": "At chance.", "remedy": "Give a file."}]
    pictures = {"looked_at": 3, "turned": 1, "endings": {".heic": 2}, "order": "numbers"}
    return RunRecord(RunSpec("digits-vit", "digits", "nearest"), metrics, {"total": 1.0}, 1.0,
                     doubts=doubts, pictures=pictures)  # fmt: skip


def test_doubts_come_first_and_are_stored_with_types() -> None:
    record = doubtful()
    first, *_ = findings.of(record)
    assert (first.name, first.text, first.remedy) == ("labels", "At chance.", "Give a file.")
    assert "Doubtful: At chance. Give a file." in report.page("t", [], [record], "today")
    body = json.loads(json.dumps(record.to_json()))
    back = RunRecord.from_json(body)
    assert (back.doubts, back.pictures) == (record.doubts, record.pictures)
    for broken in ({"doubts": [{"name": "labels"}]}, {"pictures": {"turned": "x"}},
                   {"pictures": {"order": "by chance"}}):  # fmt: skip
        with pytest.raises(InvalidSpec, match="damaged"):
            RunRecord.from_json(body | broken)


def test_the_card_shows_doubts() -> None:
    from streamlit.testing.v1 import AppTest

    def script() -> None:
        import sys

        from qlib.ui.shared import cards

        sys.path.insert(0, "tests")
        from test_labels import doubtful

        cards.result(doubtful())

    page = AppTest.from_function(script).run(timeout=30)
    assert not page.exception
    assert [warning.value for warning in page.warning] == ["At chance. Give a file."]


def test_the_form_gives_both_fields() -> None:
    from qlib.ui.run import form

    text = Path(form.__file__).read_text()
    assert form.SPEC_KEYS["skip_damaged"] == "skip"
    assert re.search(r'key="classes"', text)


def test_a_visitor_from_elsewhere_reads_no_file_through_messages(monkeypatch, tmp_path) -> None:
    from qlib.ui.run import form
    from qlib.ui.shared import own_code

    (tmp_path / "secret").write_text("password\npassword\n")
    spec = RunSpec("digits-vit", "digits", "nearest", classes=str(tmp_path / "secret"))
    monkeypatch.setattr(own_code, "allowed", lambda: False)
    with pytest.raises(InvalidSpec, match="only for a visitor at the machine itself"):
        form.checked(spec)
    monkeypatch.setattr(own_code, "allowed", lambda: True)
    with pytest.raises(InvalidSpec, match="twice"):
        form.checked(spec)
