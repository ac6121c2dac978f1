"""Picture files as people have them: odd kinds, damaged ones, odd names, links, the same twice."""

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features
from test_datasets import make_folder, make_zip, picture, png, pool

from qlib.__main__ import _print
from qlib.core.preprocess import Preprocess
from qlib.core.records import InvalidSpec, RunSpec
from qlib.datasets import _archive, _decode, _files, _walk
from qlib.datasets.base import Images
from qlib.datasets.folder import Folder
from qlib.datasets.preprocessing import prepare
from qlib.pipeline.picture_note import sentences
from qlib.pipeline.sources import class_names, open_sources

EIGHT = np.random.default_rng(5).integers(0, 256, (9, 12), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **kwargs) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **kwargs)
    return out.getvalue()


def read(content: bytes) -> tuple[np.ndarray, str, tuple[str, ...]]:
    one = _decode.decode(content, "a")
    return np.asarray(one.image), one.image.mode, one.changes


# ---- kinds of pixels ----------------------------------------------------------------------------

GREYS = {
    "8 bits": (Image.fromarray(EIGHT), "PNG", ()),
    "16 bits": (Image.fromarray(EIGHT.astype(np.uint16) * 257), "PNG", ("sixteen_bit",)),
    "16 bits, TIFF": (Image.fromarray(EIGHT.astype(np.uint16) * 257), "TIFF", ("sixteen_bit",)),
    "16 bits, PGM": (Image.fromarray(EIGHT.astype(np.int32) * 257), "PPM", ("sixteen_bit",)),
    "floats to 1": (Image.fromarray((EIGHT / 255).astype(np.float32)), "TIFF", ("by_range",)),
    "floats to 255": (Image.fromarray(EIGHT.astype(np.float32)), "TIFF", ("by_range",)),
    "floats to 65,535": (Image.fromarray(EIGHT.astype(np.float32) * 257), "TIFF", ("by_range",)),
    "long integers": (Image.fromarray(EIGHT.astype(np.int32) * 257), "TIFF", ("by_range",)),
}


@pytest.mark.parametrize("case", GREYS)
def test_greys_of_any_type_are_the_8_bit_one(case: str) -> None:
    image, kind, changes = GREYS[case]
    pixels, mode, done = read(encoded(image, kind))
    assert mode == "L"
    assert np.array_equal(pixels, EIGHT)
    assert done == changes


@pytest.mark.parametrize("odd", [-1.0, 1e6, np.nan])
def test_floats_outside_every_range_are_refused_with_their_range(odd: float) -> None:
    values = EIGHT.astype(np.float32)
    values[0, 0] = odd
    with pytest.raises(InvalidSpec, match=r"a is grey with values from .* to .*, and ranges of 0"):
        read(encoded(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_camera_s_turn_is_undone(orientation: int) -> None:
    upright = picture(1, (12, 8))
    stored = {  # what the camera writes, so that turned as the tag says it is upright
        1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud,
        5: lambda x: x.transpose(1, 0, 2), 6: lambda x: np.rot90(x, 1),
        7: lambda x: np.rot90(x, 2).transpose(1, 0, 2), 8: lambda x: np.rot90(x, 3),
    }[orientation](np.asarray(upright))  # fmt: skip
    exif = Image.Exif()
    exif[_decode.ORIENTATION] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored))
    pixels, _, changes = read(encoded(image, "PNG", exif=exif))
    assert np.array_equal(pixels, np.asarray(upright))
    assert changes == (("turned",) if orientation > 1 else ())


def test_odd_metadata_is_no_damage() -> None:
    content = encoded(picture(1), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert read(content)[2] == ()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pictures_lie_on_white_whatever_is_hidden(mode: str) -> None:
    colours = np.asarray(picture(2, (6, 6)).convert(mode[:-1]), np.float64)
    alpha = np.tile(np.array([0, 255, 51], np.uint8), (6, 2))
    image = picture(2, (6, 6)).convert(mode)
    image.putalpha(Image.fromarray(alpha))
    share = alpha / 255 if mode == "LA" else alpha[..., None] / 255
    pixels, kind, changes = read(encoded(image))
    assert (kind, changes) == (mode[:-1], ("composed",))
    assert np.abs(pixels - (share * colours + (1 - share) * 255)).max() <= 1
    assert (pixels[:, 0] == 255).all()  # the hidden colours are gone


def test_opaque_alpha_and_palettes_change_nothing() -> None:
    image = picture(3)
    assert np.array_equal(read(encoded(image.convert("RGBA")))[0], np.asarray(image))
    few = image.quantize(16)
    assert np.array_equal(read(encoded(few))[0], np.asarray(few.convert("RGB")))
    assert read(encoded(few))[1:] == ("RGB", ())
    hole = encoded(few, transparency=few.getpixel((0, 0)))  # one colour of the palette is none
    assert read(hole)[0][0, 0].tolist() == [255, 255, 255]


def test_cmyk_has_the_colours_of_its_picture() -> None:
    flat = Image.new("RGB", (8, 8), (200, 40, 90))
    pixels, mode, _ = read(encoded(flat.convert("CMYK"), "JPEG", quality=95))
    assert mode == "RGB"
    assert np.abs(pixels.astype(int) - [200, 40, 90]).max() <= 4


def test_the_first_of_several_frames_is_told() -> None:
    frames = [picture(i).quantize(8) for i in range(3)]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert read(content)[2] == ("first_frame",)


# ---- sizes --------------------------------------------------------------------------------------


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and has nothing to decode."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = (head, b"IDAT" + zlib.compress(b""), b"IEND")
    parts = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((60_000_000, 1), "too thin: 60000000 x 1 pixels, and one side may be at most 1,000 times"),
        ((3, 3001), "too thin: 3 x 3001 pixels"),
        ((9000, 9000), "too large: 9000 x 9000 pixels, and at most 67,108,864 are read"),
        ((60_000, 60_000), "too large: more than .* pixels, and at most 67,108,864 are read"),
    ],
)
def test_size_is_looked_at_before_anything_is_decoded(size, words, monkeypatch) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(InvalidSpec, match=f"a is {words}"):
        read(png_of_size(*size))


def test_what_would_grow_beyond_memory_is_refused_by_name() -> None:
    wants = Preprocess((1, 512, 512), (0.0,), (1.0,))
    images = Images(["thin.png"], None, lambda i: Image.new("L", (900, 1)))
    with pytest.raises(InvalidSpec, match=r"thin.png: The image of 900 x 1 pixels would have 235,"):
        prepare.to_tensor(images, wants)
    assert prepare.to_tensor(images, Preprocess((1, 8, 8), (0.0,), (1.0,))).shape == (1, 1, 8, 8)


# ---- damaged files ------------------------------------------------------------------------------

ANT = {f"ant/{i:02d}.png": png(i) for i in range(20)}
BEE = {f"bee/{i:02d}.png": png(50 + i) for i in range(20)}


def with_damage(tmp_path: Path, damaged: dict[str, bytes]) -> str:
    return f"folder:{make_folder(tmp_path / 'd', ANT | BEE | damaged)}"


def test_damaged_files_are_named_together(tmp_path: Path) -> None:
    damaged = {f"ant/{i:02d}.png": b"" for i in range(3)} | {"bee/07.png": b"hello"}
    images = Folder(with_damage(tmp_path, damaged)).test()
    with pytest.raises(InvalidSpec) as caught:
        [images.image(i) for i in range(len(images))]
    text = str(caught.value)
    assert "4 of them" in text
    assert all(f"ant/0{i}.png (empty (0 bytes))" in text for i in range(3))
    assert "bee/07.png (damaged or no image (its content is none of JPEG, PNG," in text
    assert "--skip-damaged" in text
    assert "BytesIO" not in text


def test_ten_damaged_files_are_enough(tmp_path: Path) -> None:
    images = Folder(with_damage(tmp_path, dict.fromkeys(ANT, b"no"))).test()
    with pytest.raises(InvalidSpec, match=r"the first 10 of them: (ant/\d\d.png [^;]*; ){10}rep"):
        images.image(0)


def test_an_empty_file_is_called_empty(tmp_path: Path) -> None:
    images = Folder(with_damage(tmp_path, {"ant/00.png": b""})).test()
    with pytest.raises(InvalidSpec, match=r"ant/00.png is empty \(0 bytes\); repair the file or"):
        images.image(0)


@pytest.mark.parametrize("n", [None, 12])
def test_damaged_files_can_be_skipped_and_are_counted(tmp_path: Path, n: int | None) -> None:
    damaged = {"ant/03.png": b"", "bee/04.png": png()[:50], "bee/05.png": b"x"}
    name = with_damage(tmp_path, damaged)
    data = Folder(name)
    assert data.skip_damaged()
    calib, test = data.calibration(10, 0), data.test(n)
    assert len(calib) == 10
    assert len(test) == (40 - 10 - 3 if n is None else n)
    assert not set(damaged) & {*calib.ids, *test.ids}
    assert not set(calib.ids) & set(test.ids)
    [test.image(i) for i in range(len(test))]
    note = data.note
    assert note["looked_at"] == 10 + len(test)
    assert set(note["skipped_names"]) <= set(damaged)
    if n is None:
        assert note["skipped"] == 3
        assert any("3 that cannot be read (" in text for text in sentences(note))
    with pytest.raises(InvalidSpec, match=r"38 images were asked of .*, and only 37 of its 40 can"):
        fresh = Folder(name)
        fresh.skip_damaged()
        fresh.calibration(38, 0)


def test_skipping_draws_what_is_drawn_without_damage(tmp_path: Path) -> None:
    whole = Folder(f"folder:{make_folder(tmp_path / 'w', ANT | BEE)}")
    skipping = Folder(with_damage(tmp_path, {}))
    skipping.skip_damaged()
    for draw in (lambda d: d.calibration(9, 4, balanced=True), lambda d: d.test(11)):
        assert list(draw(whole).ids) == list(draw(skipping).ids)


# ---- what is no regular file --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pipe", "device", "nothing"])
def test_only_regular_files_are_opened(tmp_path: Path, kind: str) -> None:
    name = with_damage(tmp_path, {})
    odd = tmp_path / "d" / "ant" / "odd.png"
    if kind == "pipe":
        os.mkfifo(odd)
    else:
        odd.symlink_to("/dev/zero" if kind == "device" else tmp_path / "gone")
    words = {"pipe": r"a pipe \(FIFO\)", "device": "a device", "nothing": "a link to nothing"}[kind]
    with pytest.raises(InvalidSpec, match=f"ant/odd.png is no regular file but {words}"):
        Folder(name).test()
    data = Folder(name)
    data.skip_damaged()
    assert len(data.test()) == 40
    assert data.note["skipped_names"] == ["ant/odd.png"]


def test_a_pipe_that_takes_a_file_s_place_is_not_waited_for(tmp_path: Path) -> None:
    files = _walk.folder(make_folder(tmp_path, {"a/1.png": png()}))
    (tmp_path / "a" / "1.png").unlink()
    os.mkfifo(tmp_path / "a" / "1.png")
    with pytest.raises(InvalidSpec, match=r"1.png is no regular file but a pipe"):
        files.picture("a/1.png")


@pytest.mark.parametrize("place", ["pipe", "device"])
def test_the_place_itself_is_a_folder_or_a_regular_file(tmp_path: Path, place: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    path = tmp_path / "pipe" if place == "pipe" else Path("/dev/zero")
    with pytest.raises(InvalidSpec, match=r"is a (pipe \(FIFO\)|device) and no regular file; give"):
        Folder(f"folder:{path}")


def test_a_file_is_read_up_to_a_limit(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(_walk, "MAX_FILE", 100)
    monkeypatch.setattr(_files, "MAX_FILE", 100)
    images = Folder(f"folder:{make_folder(tmp_path, {'a/1.png': png()})}").test()
    with pytest.raises(InvalidSpec, match=r"a/1.png is too large: \d+ bytes, and at most 100 are"):
        images.image(0)


def test_a_large_member_is_refused_before_it_is_read(tmp_path: Path, monkeypatch) -> None:
    noise = np.random.default_rng(0).bytes(3000)  # pads: all together packs badly
    path = make_zip(
        tmp_path / "a.zip", {"a/1.png": bytes(200_000), "a/2.png": noise, "b/pad.bin": noise * 9},
        compression=zipfile.ZIP_DEFLATED,
    )  # fmt: skip
    for module in (_archive, _files):
        monkeypatch.setattr(module, "MAX_FILE", 100_000)
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *args: pytest.fail("read"))
    with pytest.raises(InvalidSpec, match=r"a/1.png is too large: 200,000 bytes, and at most 100"):
        Folder(f"folder:{path}")


# ---- names and folders --------------------------------------------------------------------------


def test_names_that_are_not_utf_8_have_replacement_marks(tmp_path: Path) -> None:
    base = os.fsencode(make_folder(tmp_path / "d", pool(1)))
    for folder, file in ((b"caf\xe9", b"\xff.png"), (b"caf\xe8", b"1.png"), (b"z", b"\xe4.png")):
        os.mkdir(base + b"/" + folder)  # noqa: PTH102
        with open(base + b"/" + folder + b"/" + file, "wb") as out:  # noqa: PTH123
            out.write(png(3))
    data = Folder(f"folder:{tmp_path / 'd'}")
    assert data.classes == ("ant", "bee", "caf\\xe8", "caf\\xe9", "z")  # alike: bytes written out
    test = data.test()
    assert [name.encode() for name in test.ids][-2:] == [
        "caf\\xe9/�.png".encode(),
        "z/�.png".encode(),
    ]
    assert test.image(3).tobytes() == picture(3).tobytes()


@pytest.mark.parametrize(
    ("train", "held_out"),
    [("Train", "val"), ("training", "validation"), ("TRAIN", "Test"), ("Training", "Valid")],
)
def test_splits_are_recognised_in_any_case(tmp_path: Path, train: str, held_out: str) -> None:
    members = {f"{train}/{k}": v for k, v in ANT.items()} | {
        f"{train}/{k}": v for k, v in BEE.items()
    }
    members |= {f"{held_out}/{k}": v for k, v in pool(2).items()} | {"extra/x/1.png": png(9)}
    for name in (make_folder(tmp_path / "d", members), make_zip(tmp_path / "d.zip", members)):
        data = Folder(f"folder:{name}")
        assert data.classes == ("ant", "bee")
        assert len(data.test()) == 4
        assert len(data.calibration(40, 0)) == 40
        assert data.note["folders"] == ["extra"]


@pytest.mark.parametrize("first", [0, 1])
def test_numbers_are_in_numeric_order(tmp_path: Path, first: int) -> None:
    names = [str(i) for i in range(first, first + 11)]
    data = Folder(f"folder:{make_folder(tmp_path, {f'{n}/1.png': png() for n in names})}")
    assert data.classes == tuple(names)
    test = data.test()
    assert {i.split("/")[0]: int(k) for i, k in zip(test.ids, test.labels, strict=True)} == {
        name: at for at, name in enumerate(names)
    }
    assert data.note["order"] == "numbers"


def test_names_are_in_the_order_of_their_text(tmp_path: Path) -> None:
    names = ("10", "2", "b", "C")
    data = Folder(f"folder:{make_folder(tmp_path, {f'{n}/1.png': png() for n in names})}")
    assert data.classes == ("10", "2", "C", "b")
    assert data.note["order"] == "names"


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    members = ANT | BEE
    members |= {
        ".cache/1.png": b"",
        "__MACOSX/ant/._1.png": b"",
        "ant/._9.png": b"",
        "top.png": b"",
    }
    members |= {"ant/a.heic": b"", "ant/b.heic": b"", "ant/notes": b"", "bee/.DS_Store": b""}
    for name in (make_folder(tmp_path / "d", members), make_zip(tmp_path / "d.zip", members)):
        data = Folder(f"folder:{name}")
        assert len(data.test()) == 40
        note = data.note
        assert note["endings"] == {".heic": 2, "without ending": 1}
        assert set(note["folders"]) == {".cache", "__MACOSX"}
        assert note["beside"] == 2
        (text,) = [line for line in sentences(note) if line.startswith("Left out")]
        assert "2 .heic" in text


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_is_read_where_pillow_can(tmp_path: Path, monkeypatch) -> None:
    members = ANT | {"bee/1.avif": encoded(picture(4), "AVIF")}
    path = make_folder(tmp_path, members)
    data = Folder(f"folder:{path}")
    assert len(data.test()) == 21
    assert data.test().image(20).size == (12, 10)
    monkeypatch.setattr(_files, "suffixes", lambda: _files.SUFFIXES)
    data = Folder(f"folder:{path}")
    assert len(data.test()) == 20
    assert data.note["endings"] == {".avif": 1}


def test_one_class_alone_is_a_class(tmp_path: Path) -> None:
    data = Folder(f"folder:{make_folder(tmp_path, ANT)}")
    assert data.classes == ("ant",)
    with pytest.raises(InvalidSpec, match=r"21 calibration images were asked of .*, which has 20"):
        data.calibration(21, 0)


def test_a_foreign_folder_is_named(tmp_path: Path) -> None:
    path = make_folder(tmp_path, {f"{d}/1.png": png() for d in (*"0123456789", "thumbs")})
    spec = RunSpec("digits-vit", f"folder:{path}", "nearest")
    data = Folder(spec.data)
    with pytest.raises(InvalidSpec, match=r"has 11, of which the network knows all but thumbs;"):
        class_names(data, spec, 10, tuple("0123456789"))
    with pytest.raises(InvalidSpec, match=r"has 11 \(0, 1, .*, thumbs\); choose .*--classes FILE"):
        class_names(data, spec, 10)


# ---- the same pictures twice --------------------------------------------------------------------


def sources(data: Path | str, other: Path | str, **kwargs):
    spec = RunSpec(
        "digits-vit", f"folder:{data}", "nearest", calib_data=f"folder:{other}", **kwargs
    )
    return open_sources(spec)


@pytest.mark.parametrize("spelling", ["dots", "link", "zip", "renamed", "part"])
def test_the_same_pictures_by_another_spelling_never_overlap(tmp_path: Path, spelling: str) -> None:
    members = ANT | BEE
    base = make_folder(tmp_path / "d", members)
    if spelling == "dots":
        other = f"{tmp_path}/d/../d/."
    elif spelling == "link":
        other = tmp_path / "link"
        other.symlink_to(base)
    elif spelling == "zip":
        other = make_zip(tmp_path / "d.zip", members)
    elif spelling == "renamed":
        other = make_folder(
            tmp_path / "e", {f"x/{k.replace('/', '_')}": v for k, v in members.items()}
        )
    else:
        other = base / "ant"
    both = sources(base, other, calib=16)
    assert both.same == (spelling in ("dots", "link"))
    content = [[s.file(i).read() for i in range(len(s))] for s in (both.calib, both.test)]
    assert not set(content[0]) & set(content[1])
    assert (len(both.calib), len(both.test)) == (16, 24)
    assert both.overlap == (0 if both.same else 16)
    if not both.same:
        assert "16 test pictures left out" in " ".join(sentences(both.note(("ant", "bee"))))
    with pytest.raises(InvalidSpec, match=r"25 test images were asked of .*, which has 24"):
        sources(base, other, calib=16, test=25)


def test_other_pictures_of_the_same_size_stay(tmp_path: Path) -> None:
    bmp = {
        f"{c}/{i}.bmp": encoded(picture(i + 9 * (c == "b")), "BMP") for c in "ab" for i in range(5)
    }
    base = make_folder(tmp_path / "d", bmp)
    other = make_folder(
        tmp_path / "e", {f"{i}.bmp": encoded(picture(30 + i), "BMP") for i in range(4)}
    )
    both = sources(base, other, calib=4)
    assert (both.overlap, len(both.test)) == (0, 10)


def test_listing_opens_no_file(tmp_path: Path, monkeypatch) -> None:
    path = make_folder(tmp_path, ANT | BEE)
    monkeypatch.setattr(os, "open", lambda *args: pytest.fail("opened"))
    data = Folder(f"folder:{path}")
    assert len(data.test()) == 40


def test_empty_files_are_not_the_same_picture(tmp_path: Path) -> None:
    damaged = {f"{c}/{i:02d}.png": b"" for c in ("ant", "bee") for i in range(0, 20, 4)}
    name = with_damage(tmp_path, damaged).removeprefix("folder:")
    both = sources(name, f"{name}/ant", calib=20)
    assert both.overlap == 15  # those of the folder ant that are no empty files


def test_a_place_whose_name_is_not_utf_8_is_printed_with_marks(capsys) -> None:
    _print(os.fsdecode(b"folder:/caf\xe9"))
    assert capsys.readouterr().out == "folder:/caf�\n"
