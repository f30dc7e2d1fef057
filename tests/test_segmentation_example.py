"""The script that segments CamVid reads it, trains what it says, goes on, and counts pixels."""

import importlib
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import clipkit
from tests.helpers.toy_data import toy_config

EXAMPLES = Path(__file__).parents[1] / "examples"
SKY, ROAD, VOID = 0, 3, 11


@pytest.fixture(scope="module")
def example() -> Iterator[Any]:
    """Return the example as a module. It imports the scripts beside it."""
    present = set(sys.modules)
    sys.path.insert(0, str(EXAMPLES))
    yield importlib.import_module("segmentation")
    sys.path.remove(str(EXAMPLES))
    for name in set(sys.modules) - present:
        if str(EXAMPLES) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder like CamVid's: a blue sky over a gray road, and a strip nobody named."""
    root = tmp_path_factory.mktemp("camvid")
    noise = np.random.default_rng(0)
    for part, count in (("train", 5), ("val", 2), ("test", 3)):
        (root / part).mkdir()
        (root / f"{part}annot").mkdir()
        for number in range(count):
            mask = np.full((96, 128), SKY, np.uint8)
            mask[48 + number :] = ROAD
            mask[90:] = VOID
            colors = np.array([(90, 150, 250), (0, 0, 0), (0, 0, 0), (90, 90, 90)])
            pixels = colors[np.where(mask == VOID, ROAD, mask)] + noise.normal(0, 8, (96, 128, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
                root / part / f"{number}.png"
            )
            Image.fromarray(mask).save(root / f"{part}annot" / f"{number}.png")
    return root


@pytest.fixture
def arguments(data: Path, tmp_path: Path) -> list[str]:
    """Return a command line that is done in seconds."""
    fast = ["--size", "64", "96", "--crop", "32", "64", "--epochs", "2", "--every", "1"]
    paths = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out.json")]
    figures = ["--figures", str(tmp_path / "figures")]
    methods = ["--methods", "frozen", "own, skips"]
    return ["segmentation.py", "--data", str(data), *fast, *paths, *figures, *methods]


def test_it_writes_a_table_figures_and_json_and_goes_on(
    example: Any,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [*arguments, "--seeds", "0", "1"])
    # Texts in all templates take most of the time, so two of the three are left out.
    options = {"class_map, one pass": example.MAPPERS["class_map, one pass"]}
    monkeypatch.setattr(example, "MAPPERS", options)
    example.main()
    assert "| own, skips | 3,246,555 | 2 | " in capsys.readouterr().out
    first = (tmp_path / "out.json").read_text("utf-8")
    found = json.loads(first)
    assert found["settings"]["frames"] == {"train": 5, "val": 2, "test": 3}
    assert list(found["methods"]) == ["place", *options, "frozen", "own, skips"]
    assert [run["seed"] for run in found["methods"]["frozen"]] == [0, 1]
    run = found["methods"]["frozen"][0]
    assert run["val_mean_iou"] == max(row["val_mean_iou"] for row in run["curves"])
    assert found["methods"]["place"][0]["accuracy"] > 0.9
    for name in ("frozen_segmentation.jpg", "frozen_segmentation_curves.png"):
        with Image.open(tmp_path / "figures" / name) as figure:
            assert figure.width > 500

    monkeypatch.setattr(example, "train", None)  # nobody may call it again
    monkeypatch.setattr(example, "map_classes", None)
    example.main()
    assert (tmp_path / "out.json").read_text("utf-8") == first
    monkeypatch.setattr(sys, "argv", [*arguments, "--epochs", "3"])
    with pytest.raises(SystemExit, match="made with other settings"):
        example.main()
    monkeypatch.setattr(sys, "argv", [*arguments, "--crop", "32", "48"])
    with pytest.raises(SystemExit, match="--size and --crop must fit"):
        example.main()


def test_another_folder_is_refused(example: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has no frames"):
        example.camvid.read_part(tmp_path, "train", (32, 32))


def test_frames_at_an_even_distance(example: Any, data: Path) -> None:
    part = example.camvid.read_part(data, "train", (32, 64), limit=2)
    assert [file.name for file in part.files] == ["0.png", "2.png"]
    assert part.images.shape == (2, 3, 32, 64)
    assert part.masks.shape == (2, 96, 128)
    shrunk = example.camvid.shrink(part.masks, (32, 64))
    assert set(shrunk.unique().tolist()) == {SKY, ROAD, VOID}


def test_a_crop_and_its_mask_are_the_same_place(example: Any) -> None:
    masks = torch.arange(4 * 6).view(1, 4, 6).repeat(8, 1, 1).byte()
    images = masks[:, None].repeat(1, 3, 1, 1)
    generator = torch.Generator().manual_seed(0)
    crops, cut = example.camvid.draw_crops(images, masks, (2, 3), generator)
    assert torch.equal(crops[:, 0], cut)
    assert crops.shape == (8, 3, 2, 3)
    steps = {int(row[0, 1]) - int(row[0, 0]) for row in cut}
    assert steps == {1, -1}  # as they are, and mirrored
    assert len({int(row.min()) for row in cut}) > 3


def test_overlaps_leave_void_out(example: Any) -> None:
    masks = torch.tensor([SKY, SKY, SKY, ROAD, VOID, VOID])
    predicted = torch.tensor([SKY, SKY, ROAD, ROAD, SKY, 5])
    counts = example.camvid.count_pixels(predicted, masks)
    assert counts.sum() == 4
    each = example.camvid.overlaps(counts)
    assert each[SKY] == pytest.approx(2 / 3)
    assert each[ROAD] == pytest.approx(1 / 2)
    assert each.isnan().sum() == 9
    scores = example.camvid.scores_of(counts)
    assert scores["mean_iou"] == pytest.approx(7 / 12, abs=1e-4)
    assert scores["accuracy"] == 0.75


def test_rare_classes_count_more_in_the_loss(example: Any) -> None:
    masks = torch.tensor([SKY] * 9 + [ROAD] * 1 + [5] * 4 + [VOID] * 50)
    weights = example.camvid.balance(masks)
    expected = [(4 / 9) ** 0.5, 2.0, 1.0, 0.0]
    assert weights[[SKY, ROAD, 5, 1]].tolist() == pytest.approx(expected)


def step(segmenter: Any) -> dict[str, torch.Tensor]:
    """Train one step, and return the state before it."""
    before = {name: value.clone() for name, value in segmenter.state_dict().items()}
    weights = [one for one in segmenter.parameters() if one.requires_grad]
    segmenter.train()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    segmenter(images).square().mean().backward()
    torch.optim.SGD(weights, lr=1.0).step()
    return before


@pytest.mark.parametrize("name", ["frozen", "frozen, skips", "own", "fine-tuned, skips"])
def test_only_what_is_trained_changes(example: Any, name: str) -> None:
    model = clipkit.CLIP.from_pretrained("tiny", device="cpu")
    original = model.visual.conv1.weight.clone()
    method = example.METHODS[name]
    segmenter = example.Segmenter(model, 11, method)
    before = step(segmenter)
    after = segmenter.state_dict()
    tower = [key for key in before if key.startswith("stages.")]
    changed = {key for key in tower if not torch.equal(before[key], after[key])}
    key = "stages.visual.conv1.weight"
    assert (key in changed) == method.trained
    assert ("stages.visual.bn1.running_mean" in changed) == method.trained
    assert bool(changed) == method.trained
    assert torch.equal(before[key], original) == (method.weights == "clip")
    assert torch.equal(model.visual.conv1.weight, original)  # the caller's stays
    assert not torch.equal(before["decoder.classify.weight"], after["decoder.classify.weight"])


def test_stages_are_those_of_the_tower(example: Any) -> None:
    model = clipkit.CLIP.from_pretrained("tiny", device="cpu")
    segmenter = example.Segmenter(model, 11, example.METHODS["frozen"])
    images = torch.rand(1, 3, 64, 96)
    maps = segmenter.eval().stages(images)
    assert [tuple(one.shape[1:]) for one in maps] == [
        (128, 16, 24),
        (256, 8, 12),
        (512, 4, 6),
        (1024, 2, 3),
    ]
    raw = clipkit.inspect.dense_features(model, images, "raw")
    torch.testing.assert_close(maps[-1], raw)


@pytest.mark.parametrize("skips", [False, True])
def test_a_vision_transformer_has_four_maps_too(example: Any, skips: bool) -> None:
    config = toy_config()
    deep = replace(config, vision=replace(config.vision, layers=6))
    torch.manual_seed(0)
    model = clipkit.CLIP(deep).eval()
    method = replace(example.METHODS["frozen"], skips=skips)
    segmenter = example.Segmenter(model, 11, method).eval()
    images = torch.rand(1, 3, 32, 48)
    maps = segmenter.stages(images)
    for found, block in zip(maps, (1, 2, 4, 5), strict=True):
        raw = clipkit.inspect.dense_features(model, images, "raw", after_block=block)
        torch.testing.assert_close(found, raw)
    scores = segmenter((255 * images).byte(), (40, 50))
    assert scores.shape == (1, 11, 40, 50)
    maps[0] += 1.0
    moved = segmenter.decoder(maps, (32, 48))
    maps[0] -= 1.0
    assert torch.allclose(moved, segmenter.decoder(maps, (32, 48)), atol=1e-6) == (not skips)


def test_the_rate_rises_and_falls(example: Any) -> None:
    rates = [example.rate_at(at, 100) for at in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert math.isclose(rates[99], 0, abs_tol=1e-3)
