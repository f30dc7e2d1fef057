"""`clipkit classify`: what it prints, what it leaves out, and its exit codes."""

import json
import time
from pathlib import Path

import pytest
from PIL import Image

import clipkit
from clipkit import CLIP, ImageClassifier
from clipkit.cli import main
from clipkit.commands import inputs

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
CAT = str(PHOTOS / "cat.jpg")
LABELS = ["cat", "dog", "rocket", "cup of coffee", "bicycle"]


def test_ranks_labels_of_a_real_photo(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", str(PHOTOS / "coffee.jpg"), "--labels", *LABELS]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].endswith("coffee.jpg")
    assert lines[1].split("  ")[1] == "cup of coffee"
    values = [float(line.rsplit(" ", 1)[1].rstrip("%")) for line in lines[1:]]
    assert len(values) == 5
    assert values == sorted(values, reverse=True)
    assert sum(values) == pytest.approx(100, abs=0.05)
    assert err.count("tiny") == 1
    assert "--model" in err


def test_json_of_a_folder_equals_the_library(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--json", "--model", "tiny", "--device", "cpu"]
    assert main(["classify", str(PHOTOS), "--labels", *LABELS, *options]) == 0
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert [Path(row["image"]).name for row in rows] == ["cat.jpg", "coffee.jpg", "rocket.jpg"]
    assert err == ""  # the model was named, so there is nothing to say

    model, preprocess = clipkit.load("tiny", "cpu")
    tokens = clipkit.tokenize([f"a photo of a {label}." for label in LABELS])
    for row in rows:
        expected = model(preprocess(row["image"]).unsqueeze(0), tokens)[0].softmax(-1)[0]
        for entry in row["labels"]:
            value = expected[LABELS.index(entry["label"])].item()
            assert entry["probability"] == pytest.approx(value, abs=1e-5)


def test_globs_and_repeats_give_each_file_once(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(PHOTOS / "*.jpg"), CAT, "--labels", "cat", "dog", "--json"]
    assert main(["classify", *arguments]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_more_images_than_one_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(35):
        Image.new("RGB", (8, 8), (7 * i, 0, 0)).save(tmp_path / f"{i:02}.png")
    assert main(["classify", str(tmp_path), "--labels", "a", "b", "--json"]) == 0
    names = [Path(json.loads(line)["image"]).name for line in capsys.readouterr().out.splitlines()]
    assert names == [f"{i:02}.png" for i in range(35)]


def test_templates_change_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    answers: list[str] = []
    for templates in (["a photo of a {}."], ["a photo of a {}.", "{}"]):
        options = ["--labels", *LABELS, "--json", "--templates", *templates]
        assert main(["classify", CAT, *options]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] != answers[1]


def test_a_prompt_set_brings_its_templates(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--labels", *LABELS, "--templates", "imagenet", "--json", "--device", "cpu"]
    assert main(["classify", CAT, *options]) == 0
    row = json.loads(capsys.readouterr().out)
    model = CLIP.from_pretrained("tiny", device="cpu")
    classifier = ImageClassifier.zero_shot(model, LABELS, "imagenet")
    assert len(classifier.prompts[0]) == 80
    found = {entry["label"]: entry["probability"] for entry in row["labels"]}
    expected = dict(classifier.predict(CAT).top())
    assert list(found) == list(expected)
    assert found == pytest.approx(expected, abs=1e-6)


def test_an_image_that_cannot_be_read_is_told_and_the_exit_code_is_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jpg").write_bytes(Path(CAT).read_bytes()[:500])
    Image.new("RGB", (40, 40), "red").save(tmp_path / "b.png")
    (tmp_path / "notes.txt").write_text("not an image, not looked at")
    assert main(["classify", str(tmp_path), "--labels", "red", "blue", "--json"]) == 1
    out, err = capsys.readouterr()
    assert [Path(json.loads(line)["image"]).name for line in out.splitlines()] == ["b.png"]
    assert "a.jpg" in err
    assert "skipped" in err


def test_a_pattern_that_leads_nowhere_is_told_and_the_exit_code_is_1(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["classify", CAT, "nowhere/*.jpg", "--labels", "cat", "dog", "--json"]) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert "no image at nowhere/*.jpg" in err


@pytest.mark.parametrize("as_json", [True, False])
def test_the_exit_code_is_2_where_no_image_can_be_read(
    as_json: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.jpg", "b.png"):
        (tmp_path / name).write_bytes(b"broken")
    options = ["--json"] if as_json else []
    assert main(["classify", str(tmp_path), "--labels", "red", "blue", *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("skipped") == 2


@pytest.mark.parametrize("patterns", [["nowhere.jpg"], ["empty"], ["nowhere.jpg", "no/*.png"]])
def test_the_exit_code_is_2_where_no_image_is_found(
    patterns: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["classify", *patterns, "--labels", "a", "b"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.rsplit(" ", 1)[1] for line in err.splitlines()] == patterns


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "a", "--model", "ViT-B/23"], "ViT-B/32"),
        (["--labels", "a", "--templates", "no place"], "no place"),
        (["--labels", "a", "--top", "0"], "--top"),
        ([], "give --labels (or --labels-file) to choose from, or a --classifier"),
        (["--classifier", "x", "--labels", "a"], "leave --labels out"),
        (["--classifier", "x", "--model", "tiny"], "leave --model out"),
        (["--classifier", "x", "--templates", "{}"], "leave --templates out"),
        (["--classifier", "no/where"], "no/where"),
    ],
)
def test_options_that_cannot_be_used_exit_with_2_and_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["classify", CAT, *arguments]) == 2
    out, err = capsys.readouterr()
    assert err.splitlines()[-1].startswith("clipkit: ")
    assert message in err
    assert not out


def test_many_files_around_standard_input_are_found_quickly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "read_image", lambda: b"image")
    before = [tmp_path / f"{i}.jpg" for i in range(10_000)]
    after = [*before[5_000:], tmp_path / "last.jpg"]
    found = iter([(before, []), (after, [])])
    monkeypatch.setattr(inputs, "find_images", lambda patterns: next(found))
    start = time.perf_counter()
    images = inputs.find_inputs(["before", "-", "after"], None).images
    assert time.perf_counter() - start < 1  # a search for each in the list took many times as long
    assert images == [*before, b"image", tmp_path / "last.jpg"]
