"""The example of learned upsampling trains generators, and compares them as it says."""

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import clipkit
from tests.helpers.toy_data import color_folders, toy_config

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, Any]]:
    """Return the three scripts as modules."""
    present = set(sys.modules)
    sys.path.insert(0, str(EXAMPLES))
    names = ("super_resolution", "upsampling", "upsampling_tables")
    yield {name: importlib.import_module(name) for name in names}
    sys.path.remove(str(EXAMPLES))
    for name in set(sys.modules) - present:
        if str(EXAMPLES) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def networks(modules: dict[str, Any]) -> Any:
    return modules["super_resolution"]


@pytest.fixture(scope="module")
def tables(modules: dict[str, Any]) -> Any:
    return modules["upsampling_tables"]


@pytest.fixture(scope="module")
def discs() -> Tensor:
    """Return images of bright discs on dark ground, (12, 3, 24, 24) uint8: nothing but edges."""
    places = torch.linspace(-1, 1, 24)
    distance = (places[:, None].square() + places.square()).sqrt()  # (24, 24)
    inside = torch.stack([distance < 0.3 + 0.05 * size for size in range(12)])
    return (20 + 200 * inside.to(torch.uint8)).unsqueeze(1).repeat(1, 3, 1, 1)


def as_images(small: Tensor) -> list[Image.Image]:
    """Return (N, 3, h, w) uint8 as PIL images."""
    return [Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()) for image in small]


def test_an_untrained_generator_is_the_bicubic_resize_of_pillow(
    networks: Any, discs: Tensor
) -> None:
    small = networks.reduce(discs, 3)
    assert small.shape == (12, 3, 8, 8)
    with torch.no_grad():
        made = networks.to_levels(networks.Generator(3, width=8, blocks=1)(small / 255))
    assert made.shape == discs.shape
    for image, own in zip(as_images(small), made, strict=True):
        resized = np.asarray(image.resize((24, 24), Image.Resampling.BICUBIC)).astype(int)
        assert np.abs(resized - own.permute(1, 2, 0).numpy()).max() <= 2


def test_crops_show_the_same_place_in_both_sizes(networks: Any) -> None:
    ramp = torch.arange(96).expand(96, 96)
    images = torch.stack([ramp, ramp.T, 255 - ramp]).to(torch.uint8).unsqueeze(0)
    small, large = networks.Crops(images, 3, seed=0).draw()
    assert small.shape == (networks.BATCH, 3, 16, 16)
    assert large.shape == (networks.BATCH, 3, 48, 48)
    torch.testing.assert_close(F.avg_pool2d(large, 3), small, atol=2 / 255, rtol=0)
    rises = small[:, 0, 0, -1] > small[:, 0, 0, 0]
    assert 0 < rises.sum() < networks.BATCH  # the others are mirrored


def test_training_by_pixels_finds_what_bicubic_misses(networks: Any, discs: Tensor) -> None:
    torch.manual_seed(0)
    generator = networks.Generator(2, width=8, blocks=1)
    losses = networks.train_by_pixels(generator, networks.Crops(discs, 2, seed=0), steps=100)
    assert len(losses) == 100
    small = networks.reduce(discs, 2) / 255
    with torch.no_grad():
        learned = networks.psnr(networks.to_levels(generator(small)), discs)
    plain = networks.psnr(networks.to_levels(networks.bicubic(small, 2)), discs)
    assert (learned - plain).mean() > 1


def test_the_adversary_changes_the_generator_alone_and_learns_itself(
    networks: Any, discs: Tensor
) -> None:
    torch.manual_seed(0)
    generator = networks.Generator(2, width=8, blocks=1)
    before = {name: weight.clone() for name, weight in generator.state_dict().items()}
    crops = networks.Crops(discs, 2, seed=0)
    losses = networks.train_by_adversary(generator, crops, steps=12)
    assert sum(losses[-3:]) < sum(losses[:3])
    assert not generator.training
    changed = [not weight.equal(before[name]) for name, weight in generator.state_dict().items()]
    assert all(changed)


def test_the_discriminator_judges_images_of_any_size(networks: Any) -> None:
    judge = networks.Discriminator().eval()
    assert judge(torch.rand(2, 3, 16, 24)).shape == (2,)
    assert judge(torch.rand(1, 3, 48, 48)).shape == (1,)


def test_a_written_generator_is_read_as_it_was(networks: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    generator = networks.Generator(3, width=8, blocks=2).eval()
    torch.nn.init.normal_(generator.tail.weight)
    networks.save_generator(generator, tmp_path / "generator.safetensors")
    read = networks.load_generator(tmp_path / "generator.safetensors")
    images = torch.rand(1, 3, 5, 7)
    with torch.no_grad():
        assert read(images).equal(generator(images))


def test_the_hook_enlarges_small_images_and_leaves_large_ones(
    networks: Any, discs: Tensor, tmp_path: Path
) -> None:
    model = clipkit.CLIP(toy_config())  # takes 32 x 32 pixels
    plain = model.preprocess
    assert isinstance(plain, clipkit.Preprocess)
    hook = networks.LearnedUpsampling(networks.Generator(2, width=8, blocks=1), plain)
    small = networks.reduce(F.interpolate(discs, (32, 32)), 2)  # (12, 3, 16, 16)
    first = as_images(small)[0]
    first.save(tmp_path / "small.png")
    assert hook(first).shape == (3, 32, 32)
    assert hook(tmp_path / "small.png").equal(hook(first))
    assert hook(small[0]).equal(hook(first))
    bicubic = replace(plain, config=replace(plain.config, interpolation="bicubic"))
    torch.testing.assert_close(hook(first), bicubic(first), atol=0.02, rtol=0)
    large = as_images(F.interpolate(discs, (40, 36)))[0]
    torch.testing.assert_close(hook(large), plain(large), atol=0.02, rtol=0)
    model.preprocess = hook
    assert model.embed_images([first, large]).shape == (2, 32)


def test_decibels_are_those_of_the_mean_squared_error(networks: Any) -> None:
    truth = torch.full((2, 3, 4, 4), 100, dtype=torch.uint8)
    off = truth + torch.tensor([1, 10], dtype=torch.uint8).view(2, 1, 1, 1)
    assert networks.psnr(off, truth).tolist() == pytest.approx([48.13, 28.13], abs=0.01)


def test_differences_are_paired_and_their_error_has_three_parts(tables: Any) -> None:
    labels = torch.tensor([0, 0, 1, 1])
    base = torch.tensor([[[True, False, False, False], [True, False, False, False]]])
    right = torch.tensor(
        [
            [[True, True, False, False], [True, True, False, False]],
            [[True, True, False, False], [True, False, False, False]],
        ]
    )
    found = tables.paired(right, base, labels)
    assert found["mean"] == pytest.approx(3 / 16)
    # The gaps of the images are 0, 3/4, 0, 0; about their mean those of the classes add up to
    # 3/8 and -3/8.
    assert found["classes"] == pytest.approx((2 * (3 / 8) ** 2) ** 0.5 / 4)
    # Both the generators and the draws have 1/4 and 1/8.
    assert found["generators"] == pytest.approx(1 / 16)
    assert found["draws"] == pytest.approx(1 / 16)
    squares = found["classes"] ** 2 + found["generators"] ** 2 + found["draws"] ** 2
    assert found["error"] == pytest.approx(squares**0.5)
    same = tables.paired(base, base, labels)
    assert same["mean"] == same["error"] == 0


def test_the_script_measures_every_way_and_writes_what_it_found(
    modules: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    color_folders(tmp_path / "fruits" / "Training", each=2)
    color_folders(tmp_path / "fruits" / "Test", each=2, seed=50)
    color_folders(tmp_path / "colors" / "train", each=2)
    color_folders(tmp_path / "colors" / "test", each=2, seed=50)
    sizes = "--classes 4 --test-images 2 --shots 2 --seeds 2 --draws 2 --width 8 --blocks 1"
    steps = "--steps 2 --adversarial-steps 1 --training-images 4 --shown 1"
    command = ["upsampling.py", *sizes.split(), *steps.split()]
    data = [f"cifar10={tmp_path / 'colors'}", f"fruits360={tmp_path / 'fruits'}"]
    folders = ["--out", str(tmp_path), "--cache", str(tmp_path / "cache")]
    monkeypatch.setattr(sys, "argv", [*command, *folders, "--data", *data])
    modules["upsampling"].main()
    results = json.loads((tmp_path / "upsampling.json").read_text("utf-8"))
    large, small = results["sets"]
    assert large["set"] == "fruits360"
    assert small["generators"] == "fruits360"
    assert list(large["accuracy"]["linear"]) == ["bilinear", "bicubic", "SRResNet", "SRGAN", "full"]
    assert "full" not in small["accuracy"]["linear"]
    assert "anchored, full" not in small["accuracy"]
    assert np.shape(large["runs"]["anchored"]["SRGAN"]) == (2, 2)
    assert large["difference"]["cosine"]["bicubic"]["error"] == 0
    assert large["psnr"]["bicubic"][0] > large["psnr"]["bilinear"][0]
    assert small["psnr"] is None
    assert len(list((tmp_path / "cache").glob("sr*-fruits360-*.safetensors"))) == 4
    assert "| classifier | bicubic | bilinear | SRResNet |" in capsys.readouterr().out
    with Image.open(tmp_path / "upsampling_fruits360.jpg") as figure:
        assert figure.size == (6 * 96, 2 * 96 + 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "cifar10=."], "larger images, for the generators"),
        (["--data", "fruits360=.", "--scale", "5"], "--scale must divide 96"),
    ],
)
def test_options_that_cannot_be_used_are_told_before_the_work(
    modules: dict[str, Any],
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["upsampling.py", *options])
    with pytest.raises(SystemExit, match=message):
        modules["upsampling"].main()
