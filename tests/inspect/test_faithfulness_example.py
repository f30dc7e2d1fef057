"""The script that measures explanations reads both layouts, goes on where it was, and counts."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import clipkit

EXAMPLES = Path(__file__).parents[2] / "examples"
FAST = ["--images", "2", "--masks", "5", "--steps", "2", "--methods", "grad_cam", "rise", "random"]


@pytest.fixture(scope="module")
def example() -> Iterator[Any]:
    """Return the example as a module. It imports the script beside it."""
    present = set(sys.modules)
    sys.path.insert(0, str(EXAMPLES))
    yield importlib.import_module("faithfulness")
    sys.path.remove(str(EXAMPLES))
    for name in set(sys.modules) - present:
        if str(EXAMPLES) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def tiny_imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of three images of a cat, two with a small box."""
    root = tmp_path_factory.mktemp("tiny")
    (root / "wnids.txt").write_text("n1\nn2")
    (root / "words.txt").write_text("n1\tcat, feline\nn2\trocket")
    (root / "val" / "images").mkdir(parents=True)
    lines: list[str] = []
    boxes = ("0\t0\t32\t32", "16\t0\t64\t32", "0\t0\t64\t64")
    for number, box in enumerate(boxes):
        with Image.open(EXAMPLES / "photos" / "cat.jpg") as photo:
            cut = photo.crop((10 * number, 0, 400, 300)).resize((64, 64))
        cut.save(root / "val" / "images" / f"{number}.JPEG", format="PNG")
        lines.append(f"{number}.JPEG\tn1\t{box}")
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines))
    return root


def run(
    example: Any, monkeypatch: pytest.MonkeyPatch, data: Path, out: Path, *options: str
) -> dict[str, Any]:
    command = ["faithfulness.py", "--data", str(data), "--out", str(out), *(options or FAST)]
    monkeypatch.setattr(sys, "argv", command)
    example.main()
    return json.loads(out.read_text())


def test_a_table_is_printed_and_a_run_goes_on(
    example: Any,
    tiny_imagenet: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "faithfulness.json"
    whole = run(example, monkeypatch, tiny_imagenet, out)
    assert sorted(whole["images"]) == ["0.JPEG", "1.JPEG"]
    for row in whole["images"].values():
        assert list(row) == ["grad_cam", "random", "rise"]
        assert all(0 <= figure <= 1 for figures in row.values() for figure in figures)
    values = [row["rise"][1] for row in whole["images"].values()]
    mean, error = whole["table"]["rise"]["insertion"]
    assert mean == pytest.approx(np.mean(values), abs=1e-4)
    assert error == pytest.approx(np.std(values, ddof=1) / 2**0.5, abs=1e-4)
    assert "| rise | 2 |" in capsys.readouterr().out

    cut_off = json.loads(out.read_text())
    cut_off["images"]["0.JPEG"]["grad_cam"] = [0.5, 0.5, 0.5]
    del cut_off["images"]["0.JPEG"]["rise"]
    del cut_off["images"]["1.JPEG"]
    out.write_text(json.dumps(cut_off))
    again = run(example, monkeypatch, tiny_imagenet, out)
    assert again["images"]["0.JPEG"]["grad_cam"] == [0.5, 0.5, 0.5]
    assert again["images"]["0.JPEG"]["rise"] == whole["images"]["0.JPEG"]["rise"]
    assert again["images"]["1.JPEG"] == whole["images"]["1.JPEG"]
    with pytest.raises(SystemExit, match="made with other settings"):
        run(example, monkeypatch, tiny_imagenet, out, *FAST, "--largest", "0.6")


def test_a_map_on_the_object_is_a_hit(example: Any) -> None:
    model = clipkit.CLIP.from_pretrained("tiny", device="cpu")
    judge = example.Judge(model, ["cat", "dog"], 5, 2)
    image = judge.preprocess(EXAMPLES / "photos" / "cat.jpg")
    middle = example.Sample(Path(), 0, [(0.4, 0.4, 0.6, 0.6)])
    corner = example.Sample(Path(), 0, [(0.0, 0.0, 0.2, 0.2)])
    assert judge.measure("center", image, middle, 0)[2] == 1
    assert judge.measure("center", image, corner, 0)[2] == 0
    dense = judge.heat_map("dense", image, 0, 0)
    assert dense.shape == (96, 96)
    assert dense.std() > 0
    probabilities = judge.probabilities(image[None])
    logits, _ = model(image[None], model.tokenizer(["a photo of a cat."]))
    assert logits.shape == (1, 1)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(1))


def test_voc_has_the_class_of_the_largest_box(example: Any, tmp_path: Path) -> None:
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "7.xml").write_text(
        "<annotation><size><width>200</width><height>100</height></size>"
        + box("dog", 0, 0, 50, 50)
        + box("cat", 0, 0, 100, 100)
        + box("cat", 150, 50, 200, 100)
        + "</annotation>"
    )
    samples, names = example.read_voc(tmp_path)
    assert names == ["cat"]
    assert samples[0].path == tmp_path / "JPEGImages" / "7.jpg"
    assert samples[0].boxes == [(0, 0, 0.5, 1), (0.75, 0.5, 1, 1)]


def box(name: str, *sides: int) -> str:
    tags = zip(("xmin", "ymin", "xmax", "ymax"), sides, strict=True)
    inner = "".join(f"<{tag}>{side}</{tag}>" for tag, side in tags)
    return f"<object><name>{name}</name><bndbox>{inner}</bndbox></object>"
