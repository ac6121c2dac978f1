"""Networks of timm with options in their names, old names, and how each tag prepares images."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from timm.data import resolve_data_config

from qlib.core import specs
from qlib.core.records import InvalidSpec, RunSpec
from qlib.models import _timm_name
from qlib.models.base import Built
from qlib.models.hub import Hub

ROOT = Path(__file__).parents[1]
SPEC = RunSpec("timm:test_vit", "digits", "nearest")


def stored(folder: Path, arch: str, **how: object) -> str:
    """A file with random weights of a network made so."""
    torch.save(timm.create_model(arch, **how).state_dict(), folder / "w.pth")
    return str(folder / "w.pth")


def built(folder: Path, name: str, arch: str, **how: object) -> Built:
    return Hub().build(Hub.proper(name), stored(folder, arch, **how))


# ---- names --------------------------------------------------------------------------------------


def test_one_network_has_one_name_and_one_key():
    one = specs.checked(replace(SPEC, model="timm:test_vit?in_chans=1&img_size=96"))
    two = specs.checked(
        replace(SPEC, model="timm:test_vit?img_size=96&in_chans=1&preprocess=train")
    )
    assert one.model == two.model == "timm:test_vit?img_size=96&in_chans=1"
    assert one.key == two.key != specs.checked(SPEC).key
    assert one.key.startswith("timm-test-vit-img-size-96-in-chans-1_nearest_W4A4_")
    assert specs.checked(replace(SPEC, model="timm:test_vit?preprocess=train")) == specs.checked(
        SPEC
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"after the \? come options such as img_size=96&in_chans=1, out of global_pool, .*''"),
        ("imgsize=96", "come options such as .* got 'imgsize=96'"),
        ("img_size", "come options such as .* got 'img_size'"),
        ("img_size=96&", "come options such as .* got ''"),
        ("img_size=96&img_size=97", "says img_size twice"),
        ("img_size=-1", "img_size is a whole number from 8 to 4,096; got '-1'"),
        ("img_size=96.0", "img_size is a whole number from 8 to 4,096; got '96.0'"),
        ("img_size=٩٦", "img_size is a whole number from 8 to 4,096"),
        (f"img_size={'9' * 5000}", "img_size is a whole number from 8 to 4,096; got '9{40}'"),
        ("in_chans=2", "in_chans is 1 or 3; got '2'"),
        ("global_pool=mean", "global_pool is one of avg, max, avgmax, .*, token, map; got 'mean'"),
        ("preprocess=val", "preprocess is one of train, test; got 'val'"),
        ("pretrained=True", "come options such as .* got 'pretrained=True'"),
    ],
)  # fmt: skip
def test_wrong_options_are_one_sentence(text, words):
    with pytest.raises(InvalidSpec, match=words) as caught:
        specs.checked(replace(SPEC, model=f"timm:test_vit?{text}"))
    assert "\n" not in str(caught.value)


def test_names_are_read_without_torch():
    code = (
        "import sys; from qlib.core import specs; from qlib.core.records import RunSpec;"
        "print(specs.checked(RunSpec('timm:x?in_chans=1&img_size=8', 'digits', 'nearest')).model);"
        "sys.exit(any(m in sys.modules for m in ('torch', 'timm')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip()) == (0, "timm:x?img_size=8&in_chans=1")


def test_an_old_name_is_the_new_network(tmp_path):
    name = "timm:convnext_tiny_in22ft1k"
    assert Hub.proper(name) == name
    network = built(tmp_path, "timm:test_convnext", "test_convnext")
    assert not any("now" in note for note in network.notes)
    from qlib.models.hub import _known

    now, (note,) = _known("convnext_tiny_in22ft1k")
    assert now == "convnext_tiny.fb_in22k_ft_in1k"
    assert note.startswith("timm calls convnext_tiny_in22ft1k convnext_tiny.fb_in22k_ft_in1k now")
    with pytest.raises(InvalidSpec, match=r"timm calls convnext_tiny_in22ft1k .* now; choose"):
        _known("convnext_tiny_in22ft1k.fb_in22k")


def test_every_old_name_leads_to_a_network_or_a_sentence():
    from qlib.models.hub import _known

    for old, now in timm.models.get_deprecated_models().items():
        if now:
            arch, (note,) = _known(old)
            assert arch.partition(".")[0] == now.partition(".")[0]
            assert f"timm calls {old} {arch} now" in note
        else:
            with pytest.raises(InvalidSpec, match=f"has taken {old} out"):
                _known(old)


# ---- networks -----------------------------------------------------------------------------------


def test_another_size_and_number_of_channels(tmp_path):
    network = built(
        tmp_path, "timm:test_vit?img_size=96&in_chans=1", "test_vit", img_size=96, in_chans=1
    )
    theirs = torch.load(tmp_path / "w.pth")
    assert torch.equal(network.module.pos_embed, theirs["pos_embed"])
    assert network.preprocess.input_size == (1, 96, 96)
    assert network.preprocess.mean == (0.5,)
    with torch.no_grad():
        assert network.module(torch.zeros(1, 1, 96, 96)).shape == (1, 1000)


def test_a_convolutional_network_takes_another_size_as_it_is(tmp_path):
    network = built(tmp_path, "timm:test_resnet?img_size=96", "test_resnet")
    assert network.preprocess.input_size == (3, 96, 96)


def test_grey_images_get_the_mean_of_the_colours(tmp_path):
    network = built(tmp_path, "timm:resnet10t.c3_in1k?in_chans=1", "resnet10t", in_chans=1)
    config = timm.get_pretrained_cfg("resnet10t.c3_in1k")
    assert network.preprocess.mean == pytest.approx((sum(config.mean) / 3,))
    assert network.preprocess.std == pytest.approx((sum(config.std) / 3,))


def test_other_shapes_say_how_to_say_it(tmp_path):
    with pytest.raises(
        InvalidSpec,
        match=r"pos_embed has shape \(1, 37, 64\) .* such as timm:test_vit\?img_size=96&in_chans=1",
    ):
        built(tmp_path, "timm:test_vit", "test_vit", img_size=96)


@pytest.mark.parametrize("option", ["window_size=7", "global_pool=token"])
def test_an_option_that_the_network_has_not(tmp_path, option):
    with pytest.raises(
        InvalidSpec, match=rf"timm cannot make test_resnet with {option} .*leave the option out"
    ):
        built(tmp_path, f"timm:test_resnet?{option}", "test_resnet")


def test_heads_of_the_file_and_heads_asked_for(tmp_path, monkeypatch):
    assert (
        built(tmp_path, "timm:test_resnet?num_classes=7", "test_resnet", num_classes=7).classes == 7
    )
    nested = {"state_dict_ema": timm.create_model("test_resnet", num_classes=5).state_dict()}
    torch.save(nested, tmp_path / "ema.pth")
    assert Hub().build("timm:test_resnet", str(tmp_path / "ema.pth")).classes == 5
    with pytest.raises(InvalidSpec, match=r"tell 1000 classes apart, so that a head of 7 would be"):
        Hub().build("timm:test_resnet?num_classes=7", None)


# ---- images -------------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", ["tv_in1k", "a3_in1k", "fb_ssl_yfcc100m_ft_in1k"])
def test_weights_of_a_tag_are_fed_as_the_tag_says(tmp_path, tag):
    network = built(tmp_path, f"timm:resnet18.{tag}", "resnet18")
    config = resolve_data_config(
        pretrained_cfg=timm.get_pretrained_cfg(f"resnet18.{tag}").to_dict()
    )
    assert all(getattr(network.preprocess, name) == value for name, value in config.items())
    assert not any("need another way" in note for note in network.notes)


def test_without_a_tag_other_ways_are_told(tmp_path):
    network = built(tmp_path, "timm:resnet18", "resnet18")
    (other,) = [note for note in network.notes if "need another way" in note]
    assert other.startswith(
        "Images are prepared as for the tag a1_in1k; weights of the tags a3_in1k"
    )
    assert not any("need" in note for note in built(tmp_path, "timm:test_vit2", "test_vit2").notes)


def test_test_settings_are_told_and_can_be_taken(tmp_path):
    plain = built(tmp_path, "timm:resnet18", "resnet18")
    assert (
        "timm tests this tag at 288 × 288 with crop 1: ?preprocess=test does the same."
        in plain.notes
    )
    assert (plain.preprocess.input_size, plain.preprocess.crop_pct) == ((3, 224, 224), 0.95)
    test = built(tmp_path, "timm:resnet18?preprocess=test", "resnet18")
    assert (test.preprocess.input_size, test.preprocess.crop_pct) == ((3, 288, 288), 1.0)
    assert not any("tests this tag" in note for note in test.notes)


def test_how_images_are_prepared_in_words(tmp_path):
    said = built(tmp_path, "timm:resnet18.tv_in1k", "resnet18").preprocess.words
    assert said == (
        "3 × 224 × 224, bilinear, crop 0.875 (center), mean 0.485, 0.456, 0.406, "
        "std 0.229, 0.224, 0.225"
    )


def test_every_option_has_a_limit_or_choices():
    options = set(_timm_name.Options.__dataclass_fields__)
    assert options == set(_timm_name.LIMITS) | set(_timm_name.CHOICES)
