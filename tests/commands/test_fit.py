"""`clipkit fit` and `clipkit eval` on class folders, beside the same by the library."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from clipkit import CLIP, ImageClassifier, LinearHead, read_folder, sample_shots
from clipkit.classify.few_shot import METHODS
from clipkit.cli import main
from clipkit.commands.folders import check_result_folder
from tests.helpers.toy_data import color_folders


def test_fit_tells_what_it_made(
    toy: Path, start: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(toy / "out")
    assert main(["fit", str(toy / "images"), "-o", out, *start]) == 0
    *rows, last = capsys.readouterr().out.splitlines()
    said = dict(row.split(maxsplit=1) for row in rows)
    assert list(said) == ["classes", "images", "method", "strength", "accuracy"]
    assert float(said.pop("strength")) > 0
    estimate = r"[\d.]+% \(95% interval [\d.]+% to 100.0%\), cross-validated in 4 folds"
    assert re.fullmatch(estimate, said.pop("accuracy"))
    assert said == {"classes": "4", "images": "20", "method": "anchored"}
    assert f"clipkit classify --classifier {out} IMAGE" in last
    classifier = ImageClassifier.load(out, device="cpu")
    assert classifier.labels == read_folder(toy / "images").class_names
    assert classifier.provenance["counts"] == [5, 5, 5, 5]


def test_classify_uses_what_fit_made(
    toy: Path, start: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    unseen = color_folders(toy / "unseen", each=3, seed=700)
    out = str(toy / "out")
    assert main(["fit", str(toy / "images"), "-o", out, *start]) == 0
    capsys.readouterr()
    fitted = ["--classifier", out, "--device", "cpu"]
    assert main(["classify", str(unseen / "dark_red"), *fitted, "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9
    assert [line.split("  ")[1] for line in lines[1::3]] == ["dark_red"] * 3

    assert main(["classify", str(unseen), *fitted, "--json"]) == 0
    rows = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
    files = read_folder(unseen).files
    assert [row["image"] for row in rows] == [str(file) for file in files]
    predictions = ImageClassifier.load(out, device="cpu").predict(files)
    for row, prediction in zip(rows, predictions, strict=True):
        found = {entry["label"]: entry["probability"] for entry in row["labels"]}
        assert list(found) == [label for label, _ in prediction.top(4)]
        assert found == pytest.approx(dict(prediction.top(4)))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_fitted(
    toy: Path, start: list[str], capsys: pytest.CaptureFixture[str], method: str
) -> None:
    options = ["--method", method, *start]
    assert main(["fit", str(toy / "images"), "-o", str(toy / "out"), *options]) == 0
    assert re.search(rf"^method +{method}$", capsys.readouterr().out, re.M)
    assert ImageClassifier.load(toy / "out", device="cpu").provenance["method"] == method


def fitted_weight(classifier: ImageClassifier) -> torch.Tensor:
    assert isinstance(classifier.head, LinearHead)
    return classifier.head.weight


def test_shots_are_drawn_by_the_seed(toy: Path, start: list[str]) -> None:
    pairs = read_folder(toy / "images")
    assert pairs.labels is not None
    assert pairs.class_names is not None
    weights: list[torch.Tensor] = []
    for seed in (1, 1, 2):
        options = ["--shots", "2", "--seed", str(seed), "--templates", "stl10"]
        options += ["--method", "random_linear", *start]
        assert main(["fit", str(toy / "images"), "-o", str(toy / "out"), *options]) == 0
        classifier = ImageClassifier.load(toy / "out", device="cpu")
        assert classifier.provenance["counts"] == [2, 2, 2, 2]
        few = pairs.select([int(i) for i in sample_shots(pairs.labels, 2, seed)])
        by_hand = ImageClassifier.zero_shot(classifier.model, pairs.class_names, "stl10")
        by_hand.fit(few.files, few.labels, "random_linear", seed=seed)
        assert torch.equal(fitted_weight(classifier), fitted_weight(by_hand))
        assert classifier.prompts == by_hand.prompts
        assert len(classifier.prompts[0]) == 2
        weights.append(fitted_weight(classifier))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_broken_images_of_class_folders_are_told(
    toy: Path, start: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = str(toy / "images"), str(toy / "out")
    (toy / "images" / "blue" / "01.png").write_bytes(b"broken")
    assert main(["fit", images, "-o", out, *start]) == 0
    said, err = capsys.readouterr()
    assert re.search(r"^clipkit: skipped: .*blue/01.png", err, re.M)
    assert re.search(r"^images +19$", said, re.M)
    counts = ImageClassifier.load(out, device="cpu").provenance["counts"]
    assert counts == [4, 5, 5, 5]
    assert main(["eval", images, "--classifier", out, "--device", "cpu"]) == 0
    said, err = capsys.readouterr()
    assert said.startswith("19 images, 4 classes\n")
    assert "skipped" in err


@pytest.fixture
def refused(toy: Path) -> Path:
    """Return the small model's folder, with what cannot be fitted or measured beside it."""
    model = CLIP.from_pretrained(toy / "start", device="cpu")
    ImageClassifier.zero_shot(model, ["green", "white"]).save(toy / "known")
    for path in ("one/a", "broken/a", "broken/b"):
        (toy / path).mkdir(parents=True)
        (toy / path / "x.png").write_bytes(b"broken")
    Image.new("RGB", (40, 40), "red").save(toy / "one" / "a" / "x.png")
    return toy


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/images", "--method", "best"], "method must be one of anchored, .* not 'best'"),
        (["{}/images", "--shots", "0"], "--shots must be at least 1, not 0"),
        (["{}/nowhere"], "there is no folder .*nowhere"),
        (["{}/one"], "a single class"),
        (["{}/broken"], "none of 2 images can be read"),
        (["{}/images", "--model", "ViT-B/23"], "ViT-B/23"),
        (["{}/images", "--templates", "no place"], "no place"),
    ],
)
def test_what_cannot_be_fitted_exits_with_2_and_one_line(
    refused: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [argument.replace("{}", str(refused)) for argument in arguments]
    words += ["--device", "cpu", "-o", str(refused / "out")]
    words += [] if "--model" in words else ["--model", str(refused / "start")]
    assert main(["fit", *words]) == 2
    out, err = capsys.readouterr()
    assert err.splitlines()[-1].startswith("clipkit: ")
    assert re.search(message, err)
    assert not out
    assert not (refused / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/nowhere", "--model", "{}/start"], "there is no folder .*nowhere"),
        (
            ["{}/images", "--classifier", "{}/known"],
            "no class of this classifier is called 'blue', 'dark_red'",
        ),
        (
            ["{}/images", "--classifier", "{}/known", "--model", "tiny"],
            "leave --model out",
        ),
        (
            ["{}/images", "--classifier", "{}/known", "--templates", "the {}"],
            "leave --templates out",
        ),
        (["{}/images", "--classifier", "{}/start"], "head.safetensors"),
    ],
)
def test_what_cannot_be_measured_exits_with_2_and_one_line(
    refused: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [argument.replace("{}", str(refused)) for argument in arguments]
    assert main(["eval", *words, "--device", "cpu"]) == 2
    out, err = capsys.readouterr()
    assert err.splitlines()[-1].startswith("clipkit: ")
    assert re.search(message, err)
    assert not out


def test_one_process_of_many_tells_what_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    for first in (True, False):
        monkeypatch.setattr("clipkit.distributed.is_first", lambda first=first: first)
        check_result_folder(tmp_path)
    assert capsys.readouterr().err.count("This will replace the model") == 1
