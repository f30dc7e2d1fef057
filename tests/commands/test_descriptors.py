"""`--descriptors` of the commands that take labels: texts from a file in the place of templates."""

import json
from pathlib import Path

import pytest

from clipkit import ImageClassifier
from clipkit.cli import main

TEXTS = {
    "blue": ["The sky."],
    "Dark red": ["Red wine."],
    "green": ["A leaf."],
    "white": ["Snow."],
}


@pytest.fixture
def texts(toy: Path) -> str:
    (toy / "texts.json").write_text(json.dumps(TEXTS))
    return str(toy / "texts.json")


def test_fit_takes_descriptors(toy: Path, start: list[str], texts: str) -> None:
    options = [*start, "--descriptors", texts, "-o", str(toy / "out")]
    assert main(["fit", str(toy / "images"), *options, "--method", "projection"]) == 0
    classifier = ImageClassifier.load(toy / "out", device="cpu")
    assert classifier.labels == ["blue", "dark_red", "green", "white"]
    assert classifier.prompts[1:3] == [
        ["Red wine."],
        ["A leaf."],
    ]


def test_classify_and_eval_take_descriptors(
    toy: Path, start: list[str], texts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(toy / "images" / "blue" / "00.png")
    options = ["--labels", "blue", "white", "--descriptors", texts, "--json"]
    assert main(["classify", image, *start, *options]) == 0
    described = json.loads(capsys.readouterr().out)["labels"]
    assert main(["classify", image, *start, "--labels", "blue", "white", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)["labels"]
    assert described != plain
    assert main(["eval", str(toy / "images"), *start, "--descriptors", texts, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 20


def test_what_is_missing_or_ignored_is_told(
    toy: Path, start: list[str], texts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(toy / "images" / "blue" / "00.png")
    command = ["classify", image, *start, "--descriptors", texts]
    assert main([*command, "--labels", "blue", "pink", "gray"]) == 2
    assert "has no texts for 'pink', 'gray': add a list" in capsys.readouterr().err
    assert main([*command, "--labels", "blue", "white", "--templates", "a {}"]) == 2
    assert "--templates and --descriptors both say what the texts are" in capsys.readouterr().err
    assert main(["classify", image, "--classifier", str(toy), "--descriptors", texts]) == 2
    assert "leave --descriptors out" in capsys.readouterr().err
