"""Sources of images: splits, draws, preprocessing, and what they refuse."""

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qlib.core.preprocess import Preprocess
from qlib.core.records import InvalidSpec
from qlib.core.specs import dataset_keys, source_of
from qlib.datasets import _archive, _fetch
from qlib.datasets._draw import shuffled
from qlib.datasets.cifar import Cifar
from qlib.datasets.digits import Digits
from qlib.datasets.fashion_mnist import FashionMnist
from qlib.datasets.folder import Folder
from qlib.datasets.imagenet import ImageNet
from qlib.datasets.imagenette import Imagenette
from qlib.datasets.preprocessing.prepare import batches, to_tensor, transform

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data")


def picture(seed: int = 0, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> Image.Image:
    shape = (size[1], size[0], 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def png(seed: int = 0) -> bytes:
    out = io.BytesIO()
    picture(seed).save(out, "PNG")
    return out.getvalue()


def make_zip(path: Path, members: dict[str, bytes], **kwargs) -> Path:
    with zipfile.ZipFile(path, "w", **kwargs) as out:
        for name, content in members.items():
            out.writestr(name, content)
    return path


def make_folder(path: Path, members: dict[str, bytes]) -> Path:
    for name, content in members.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def pool(n: int = 6) -> dict[str, bytes]:
    return {f"{c}/{i}.png": png(i) for c in ("ant", "bee") for i in range(n)}


@pytest.fixture(params=["folder", "zip", "wrapped zip"])
def made(request, tmp_path):
    """A maker of a data set from ``name -> content``, in each of the three forms."""

    def make(members: dict[str, bytes]) -> str:
        if request.param == "folder":
            return f"folder:{make_folder(tmp_path / 'd', members)}"
        top = "top/" if request.param.startswith("wrapped") else ""
        members = {top + k: v for k, v in members.items()}
        return f"folder:{make_zip(tmp_path / 'd.zip', members)}"

    return make


# --- digits and draws


def test_digits_split_is_fixed_and_stratified():
    data = Digits()
    test, rest = data.test(), data.training()
    assert (len(test), len(rest)) == (600, 1197)
    assert np.bincount(test.labels).tolist() == [60] * 10
    assert not set(test.ids) & set(rest.ids)
    # stored numbers rest on this very split
    assert test.ids[:4] == ["digits/0003", "digits/0005", "digits/0013", "digits/0014"]
    assert data.classes == tuple("0123456789")


def test_digits_pixels_are_exact():
    from sklearn.datasets import load_digits

    data = Digits()
    images = data.test()
    raw = load_digits().images[[int(i.split("/")[1]) for i in images.ids]]
    x = to_tensor(images, Preprocess((1, 8, 8), (0.0,), (1.0,)))
    assert x.shape == (600, 1, 8, 8)
    assert x.dtype == torch.float32
    assert np.abs(x[:, 0].numpy() - raw / 16).max() <= 0.5 / 255 + 1e-6
    assert images.image(0).mode == "L"


def test_calibration_draw():
    data = Digits()
    small, large = data.calibration(8, seed=3), data.calibration(32, seed=3)
    assert list(large.ids[:8]) == list(small.ids)
    assert list(data.calibration(8, seed=4).ids) != list(small.ids)
    assert not set(data.calibration(1197, seed=0).ids) & set(data.test().ids)
    for n in (0, 1198):
        with pytest.raises(
            InvalidSpec, match=rf"{n} calibration images were asked of digits.*1 to 1197"
        ):
            data.calibration(n, seed=0)


def test_test_draw_is_the_same_every_time():
    data = Digits()
    assert list(data.test(50).ids) == list(Digits().test(50).ids)
    assert set(data.test(20).ids) < set(data.test(50).ids)
    with pytest.raises(InvalidSpec, match=r"601 test images were asked of digits, which has 600"):
        data.test(601)


def test_shuffled_does_not_change():
    assert shuffled(["a", "b", "c", "d", "e"], 0) == [2, 0, 1, 4, 3]


def test_labels_belong_to_images():
    data = Digits()
    all_ = {i: int(label) for i, label in zip(data.test().ids, data.test().labels, strict=True)}
    few = data.test(10)
    assert [all_[i] for i in few.ids] == few.labels.tolist()
    drawn, rest = data.calibration(5, 0), data.training()
    for k, name in enumerate(drawn.ids):
        where = list(rest.ids).index(name)
        assert rest.labels[where] == drawn.labels[k]
        assert rest.image(where).tobytes() == drawn.image(k).tobytes()


# --- from images to tensors

CONFIGS = {
    "center": Preprocess((3, 24, 24), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), "bicubic", 0.875),
    "bilinear": Preprocess((3, 24, 24), (0.5,) * 3, (0.5,) * 3, "bilinear", 0.9),
    "squash": Preprocess((3, 24, 20), (0.5,) * 3, (0.5,) * 3, "bicubic", 0.95, "squash"),
    "border": Preprocess((3, 24, 24), (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0, "border"),
    "oblong": Preprocess((3, 24, 30), (0.5,) * 3, (0.5,) * 3, "bicubic", 0.9),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("size", [(40, 31), (20, 33), (24, 24)])
def test_preparation_is_timms(name, size):
    import timm
    from timm.data import create_transform, resolve_model_data_config

    want = CONFIGS[name]
    net = timm.create_model("test_resnet", pretrained_cfg_overlay=vars(want))
    config = resolve_model_data_config(net)
    image = picture(1, size)
    expected = create_transform(**config, is_training=False)(image)
    assert torch.equal(transform(want)(image), expected)


def test_image_of_the_right_size_is_not_resampled():
    image = picture(2, (32, 32))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    x = transform(Preprocess((3, 32, 32), mean, std))(image)
    raw = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    expected = (raw - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.equal(x, expected)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "CMYK"])
def test_colour_becomes_what_the_network_takes(mode):
    image = picture(3, (8, 8), "RGB").convert(mode)
    for channels in (1, 3):
        wants = Preprocess((channels, 8, 8), (0.5,) * channels, (0.5,) * channels)
        assert transform(wants)(image).shape == (channels, 8, 8)
    with pytest.raises(InvalidSpec, match=r"wants images of 4 channels; grey .1. and colour .3."):
        transform(Preprocess((4, 8, 8), (0.5,) * 4, (0.5,) * 4))


def test_batches_are_the_whole_in_parts():
    images, wants = Digits().test(50), Preprocess((1, 8, 8), (0.3,), (0.4,))
    parts = list(batches(images, wants, size=16))
    assert [start for start, _ in parts] == [0, 16, 32, 48]
    assert torch.equal(torch.cat([x for _, x in parts]), to_tensor(images, wants))
    assert torch.equal(to_tensor(images, wants, 3, 5), to_tensor(images, wants)[3:5])
    with pytest.raises(InvalidSpec, match="No image lies between 50 and None: the set has 50"):
        to_tensor(images, wants, 50)


# --- folders and zips


def test_pool_never_tests_what_it_calibrated_with(made):
    name = made(pool())
    data = Folder(name)
    assert data.classes == ("ant", "bee")
    drawn = data.calibration(5, seed=0)
    test = data.test()
    assert len(test) == 7
    assert not set(drawn.ids) & set(test.ids)
    assert test.labels.tolist() == [i.split("/")[-2] == "bee" for i in test.ids]
    assert test.image(0).size == (12, 10)
    assert len(Folder(name).test()) == 12  # only tested: all
    assert list(Folder(name).calibration(5, 0).ids) == list(drawn.ids)


def test_pool_never_calibrates_with_what_it_tested(made):
    data = Folder(made(pool()))
    test = data.test(8)
    assert not set(data.calibration(4, 0).ids) & set(test.ids)
    with pytest.raises(
        InvalidSpec, match=r"5 calibration .* and 4 are left after the test images; draw"
    ):
        data.calibration(5, 0)


def test_pool_that_is_used_up(made):
    data = Folder(made(pool(2)))
    data.calibration(4, 0)
    with pytest.raises(
        InvalidSpec, match=r"All 4 images in .* were drawn for calibration, and none"
    ):
        data.test()
    with pytest.raises(InvalidSpec, match=r"5 calibration images were asked of .*d.*, which has 4"):
        data.calibration(5, 0)


@pytest.mark.parametrize("held_out", ["test", "val", "validation"])
def test_split_folders_are_used(made, held_out):
    members = {f"train/{k}": v for k, v in pool(3).items()}
    members |= {f"{held_out}/{k}": v for k, v in pool(2).items()} | {"extra/x/1.png": png()}
    data = Folder(made(members))
    assert data.classes == ("ant", "bee")
    assert len(data.calibration(6, 0)) == 6
    assert data.test().labels.tolist() == [0, 0, 1, 1]
    with pytest.raises(InvalidSpec, match="7 calibration images were asked"):
        data.calibration(7, 0)


def test_classes_are_counted_over_both_parts(tmp_path):
    members = {f"train/{c}/1.png": png() for c in "abc"} | {"val/c/1.png": png()}
    data = Folder(f"folder:{make_folder(tmp_path, members)}")
    assert data.classes == ("a", "b", "c")
    assert data.test().labels.tolist() == [2]


def test_one_split_alone_is_a_pool(made):
    data = Folder(made({f"train/{k}": v for k, v in pool(2).items()}))
    assert data.classes == ("ant", "bee")
    assert len(data.test()) == 4


def test_flat_images_calibrate_and_test_without_labels(made):
    data = Folder(made({f"{i}.png": png(i) for i in range(4)}))
    if data.classes == ():  # a wrapping folder is taken for the one class
        assert data.calibration(3, 0).labels is None
        assert data.test().labels is None and len(data.test()) == 1
    assert len(data.calibration(3, 0)) == 3


def test_what_is_no_image_is_passed_over(made):
    hidden = {".x/1.png": b"", "ant/._1.png": b"", "__MACOSX/ant/1.png": b"", "notes.txt": b""}
    data = Folder(
        made(pool(1) | hidden | {"cover.png": png(), "ant/readme.md": b"", "bee/UP.PNG": png()})
    )
    assert [i.split("/")[-1] for i in data.test().ids] == ["0.png", "0.png", "UP.PNG"]


def test_links_do_not_walk_round(tmp_path):
    make_folder(tmp_path / "d", pool(1))
    (tmp_path / "d" / "ant" / "up").symlink_to(tmp_path / "d", target_is_directory=True)
    assert len(Folder(f"folder:{tmp_path / 'd'}").test()) == 2


def refuses(name: str, match: str) -> None:
    with pytest.raises(InvalidSpec, match=match) as caught:
        Folder(name).test().image(0)
    assert "\n" not in str(caught.value)


def test_no_place(tmp_path):
    refuses("folder:", "'folder:' names no place; write folder:PATH with a folder or a zip")
    refuses(f"folder:{tmp_path / 'gone'}", "There is nothing at .*gone; check the path")
    assert not Folder.owns("folder:PATH")
    with pytest.raises(InvalidSpec, match="is a pattern"):
        source_of("datasets", "folder:PATH")


def test_no_image(tmp_path):
    (tmp_path / "empty").mkdir()
    make_folder(tmp_path / "text", {"a/1.txt": b"hello"})
    make_zip(tmp_path / "none.zip", {"a/1.txt": b"hello"})
    for name in ("empty", "text", "none.zip"):
        refuses(
            f"folder:{tmp_path / name}", rf"No image was found in .*{name}.*; it needs sub-folders"
        )


def test_not_a_zip(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"hello")
    refuses(f"folder:{tmp_path / 'a.zip'}", "a.zip is neither a folder nor a readable zip file")
    whole = make_zip(tmp_path / "b.zip", pool(1)).read_bytes()
    (tmp_path / "b.zip").write_bytes(whole[: len(whole) // 2])
    refuses(f"folder:{tmp_path / 'b.zip'}", "b.zip is neither a folder nor a readable zip file")


@pytest.mark.parametrize("content", [b"hello", png()[:-30], png()[:40]])
def test_corrupt_image_is_named(made, content):
    refuses(
        made({"ant/bad.png": content}), r"ant/bad.png is damaged or no image .*; repair the file"
    )


def test_no_other_program_is_started_for_an_image(made):
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    refuses(made({"ant/bad.png": eps}), "ant/bad.png is damaged or no image")


def test_huge_image_is_refused_before_it_is_unpacked(made, recwarn):
    header = b"BM" + struct.pack(
        "<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 99999, 99999, 1, 24, *[0] * 6
    )
    refuses(
        made({"ant/bad.bmp": header}),
        "bad.bmp is too large: more than .* pixels, and at most 67,108,864 are read",
    )


def test_damaged_member_is_named(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"ant/1.png": png()})
    content = bytearray(path.read_bytes())
    content[60] ^= 255
    path.write_bytes(content)
    refuses(f"folder:{path}", "a.zip: ant/1.png is (not readable|damaged) .*; make the zip again")


@pytest.mark.parametrize(
    "bad", ["../x.png", "a/../../x.png", "/etc/x.png", "C:/x.png", "..\\x.png"]
)
def test_member_that_would_leave_the_folder(tmp_path, bad):
    path = make_zip(tmp_path / "a.zip", pool(1) | {bad: png()})
    refuses(f"folder:{path}", "a.zip has a member .* that would leave the folder; names must be")


def test_zip_bombs(tmp_path, monkeypatch):
    zeros = {"a/1.png": bytes(10**6)}
    path = make_zip(tmp_path / "ratio.zip", zeros, compression=zipfile.ZIP_DEFLATED)
    refuses(
        f"folder:{path}", r"ratio.zip has \d+ times its size when unpacked, and at most 200 are"
    )
    monkeypatch.setattr(_archive, "MAX_MEMBERS", 3)
    path = make_zip(tmp_path / "many.zip", pool(2))
    refuses(f"folder:{path}", "many.zip has 4 members, and at most 3 are read from a zip; unpack")
    monkeypatch.setattr(_archive, "MAX_BYTES", 1000)
    path = make_zip(tmp_path / "large.zip", {"a/1.png": bytes(1001)})
    refuses(f"folder:{path}", "large.zip has 1,001 bytes when unpacked, and at most 1,000")


def test_zips_side_by_side_stand_for_folders(tmp_path):
    make_zip(tmp_path / "n01440764.zip", {"a.png": png(1), "b.png": png(2)})
    make_zip(tmp_path / "n15075141.zip", {"n15075141/c.png": png(3)})
    test = ImageNet(f"imagenet:{tmp_path}").test()
    assert list(test.ids) == ["n01440764/a.png", "n01440764/b.png", "n15075141/c.png"]
    assert test.labels.tolist() == [0, 0, 999]
    assert test.image(2).tobytes() == picture(3).tobytes()


# --- ImageNet


def test_imagenet_subset_keeps_its_class_indices(tmp_path):
    members = {"n02979186/1.png": png(), "n01440764/1.png": png()}
    data = ImageNet(f"imagenet:{make_folder(tmp_path, members)}")
    assert len(data.classes) == 1000 == len(set(data.classes))
    test = data.test()
    assert [data.classes[i] for i in test.labels] == ["tench", "cassette player"]
    assert test.labels.tolist() == [0, 482]


def test_unknown_wordnet_id(tmp_path):
    make_folder(tmp_path, {"n01440764/1.png": png(), "cat/1.png": png(), "dog/1.png": png()})
    with pytest.raises(
        InvalidSpec, match=r"has a folder 'cat' and 1 more that is none of ImageNet's Wor"
    ):
        ImageNet(f"imagenet:{tmp_path}")


@pytest.mark.shared
@needs_shared
def test_shared_imagenet():
    from qlib.datasets._imagenet import wordnet_ids

    assert list(wordnet_ids()) == (SHARED / "imagenet-wnids.txt").read_text().split()
    data = ImageNet(f"imagenet:{SHARED / 'imagenet-val-650.zip'}")
    assert len(data.test()) == 650
    assert data.test().image(0).size == (227, 227)
    assert len(ImageNet(f"imagenet:{SHARED / 'imagenet-calib-250.zip'}").calibration(250, 0)) == 250


@pytest.mark.shared
@needs_shared
def test_shared_cifar_accuracy():
    model = source_of("models", "cifar10-resnet20")()
    built = model.build("cifar10-resnet20", str(SHARED / "cifar10-resnet20.safetensors"))
    test = Folder(f"folder:{SHARED / 'cifar10-test.zip'}").test(400)
    with torch.inference_mode():
        guess = built.module(to_tensor(test, built.preprocess)).argmax(1)
    assert (guess.numpy() == test.labels).mean() > 0.88  # 91.73 % of all 10,000


# --- downloads


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty place for data, and no internet."""
    monkeypatch.setenv("QLIB_DATA", str(tmp_path / "home"))
    monkeypatch.setattr(_fetch, "reachable", lambda url: False)
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cifar10", "cifar-10-batches-py"),
        ("cifar100", "cifar-100-python"),
        ("fashion-mnist", "FashionMNIST/raw"),
        ("imagenette", "imagenette2-320"),
    ],
)
def test_offline_says_what_to_put_where(home, name, expected):
    where = rf"{name} is not on this machine .* put the.* {expected}.* into {home / name} .the env"
    with pytest.raises(InvalidSpec, match=where) as caught:
        source_of("datasets", name)(name)
    assert "\n" not in str(caught.value)
    assert not home.exists()


def test_data_home(monkeypatch):
    monkeypatch.delenv("QLIB_DATA", raising=False)
    assert _fetch.data_home() == Path.home() / ".cache" / "qlib"


def test_failed_download_leaves_nothing(home, monkeypatch):
    def make(root, download):
        if download:
            (Path(root) / "raw").mkdir()
        raise RuntimeError("Error downloading\nlong story")

    monkeypatch.setattr(_fetch, "reachable", lambda url: True)
    with pytest.raises(
        InvalidSpec, match=r"x could not be downloaded \(Error downloading\); connect to"
    ):
        _fetch.fetch(make, "x", "https://host.invalid", "the folder raw")
    assert not (home / "x").exists()


def test_download_happens_when_asked(home, monkeypatch):
    def make(root, download):
        if not download and not (Path(root) / "there").exists():
            raise RuntimeError("Dataset not found")
        (Path(root) / "there").touch()
        return "data"

    monkeypatch.setattr(_fetch, "reachable", lambda url: True)
    assert _fetch.fetch(make, "x", "https://host.invalid", "it") == "data"
    monkeypatch.setattr(_fetch, "reachable", lambda url: False)
    assert _fetch.fetch(make, "x", "https://host.invalid", "it") == "data"  # now it is there


class FakeArrays:
    """What torchvision's in-memory data sets look like from outside."""

    classes: tuple[str, ...] = ("a", "b", "c")

    def __init__(self, root: str, train: bool, download: bool) -> None:
        n = 9 if train else 5
        rng = np.random.default_rng(int(train))
        self.data = rng.integers(0, 256, (n, *self.shape), dtype=np.uint8)
        self.targets = [i % 3 for i in range(n)]


class FakeCifar(FakeArrays):
    shape = (32, 32, 3)


class FakeFashion(FakeArrays):
    shape = (28, 28)

    def __init__(self, root: str, train: bool, download: bool) -> None:
        super().__init__(root, train, download)
        self.data, self.targets = torch.from_numpy(self.data), torch.tensor(self.targets)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion-mnist"])
def test_arrays_become_images(home, monkeypatch, name):
    from torchvision import datasets

    for key in ("CIFAR10", "CIFAR100"):
        monkeypatch.setattr(datasets, key, FakeCifar)
    monkeypatch.setattr(datasets, "FashionMNIST", FakeFashion)
    data = source_of("datasets", name)(name)
    assert data.classes == ("a", "b", "c")
    test, calib = data.test(), data.calibration(9, 0)
    assert test.labels.tolist() == [0, 1, 2, 0, 1]
    assert test.labels.dtype == np.int64
    assert test.ids[0] == f"{name}/test/00000"
    assert not set(test.ids) & set(calib.ids)
    size = np.prod(FakeCifar.shape if name.startswith("cifar") else FakeFashion.shape)
    fake = (FakeFashion if name == "fashion-mnist" else FakeCifar)("", False, False)
    assert test.image(1).tobytes() == np.asarray(fake.data).tobytes()[size : 2 * size]
    assert len(data.test(2)) == 2
    with pytest.raises(
        InvalidSpec, match=f"10 calibration images were asked of {name}, which has 9"
    ):
        data.calibration(10, 0)


def test_imagenette_is_scored_as_imagenet(home):
    root = home / "imagenette" / "imagenette2-320"
    for part in ("train", "val"):
        make_folder(root / part, {"n02979186/a.JPEG": png(), "n01440764/b.JPEG": png()})
    data = Imagenette()
    assert len(data.classes) == 1000
    assert data.test().labels.tolist() == [0, 482]
    assert len(data.calibration(2, 0)) == 2


def test_keys():
    assert {
        *("digits", "cifar10", "cifar100", "fashion-mnist", "imagenette"),
        *("folder:PATH", "imagenet:PATH"),
    } <= set(dataset_keys())
    assert {Cifar, Digits, FashionMnist, Folder, ImageNet, Imagenette} == {
        source_of("datasets", k)
        for k in ("cifar10", "digits", "fashion-mnist", "folder:x", "imagenet:x", "imagenette")
    }
