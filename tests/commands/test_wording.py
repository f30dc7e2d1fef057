"""Errors speak of options where Python's speak of arguments (S1)."""

import re
from pathlib import Path

import pytest

import clipkit
from clipkit.commands.wording import _PHRASES, in_options

PACKAGE = Path(clipkit.__file__).parent

NAMES = ["config", "activation", "head_width", "cache_dir", "head_only", "held_out", "alpha", "lr"]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("pass config= with a name", "pass --config with a name"),
        ("or activation= and head_width=", "or --activation and --head-width"),
        ("with activation='gelu' for GELU", "with --activation gelu for GELU"),
        ("head_only=True trains no tower", "--head-only trains no tower"),
        ("pass the cache_dir that holds it", "pass the --cache-dir that holds it"),
        ("held_out must be a share", "--held-out must be a share"),
        ("TrainConfig.lr must be a number", "--lr must be a number"),
        ("alpha must be from 0", "--alpha must be from 0"),
        (
            "alpha and lr would be ignored, leave it out",
            "--alpha and --lr would be ignored, leave it out",
        ),
        (
            "there is no device 'x' here: pass 'cpu' or None",
            "there is no device 'x' here: give --device cpu, or leave --device out",
        ),
        ("pass truncate=True to it", "pass truncate=True to it"),  # no option of this command
    ],
)
def test_arguments_become_options(message: str, said: str) -> None:
    assert in_options(message, NAMES) == said


@pytest.mark.parametrize(
    "message",
    [
        "cannot read photos/held_out/a.jpg",
        "no file 'head_width'",
        "cannot read /runs/config=3/a.jpg",
        "the config states 3 layers",
        "an alpha channel must be",
        "more tokens than context_length=77",
    ],
)
def test_paths_and_words_stay(message: str) -> None:
    assert in_options(message, NAMES) == message


def test_functions_become_commands() -> None:
    said = in_options("`clipkit.list_models()` names them all", [])
    assert said == "`clipkit models` lists them all"


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            "pass the one that belongs as tokenizer=clipkit.Tokenizer(merges, ...)",
            "pass the one that belongs as --tokenizer its merges.txt",
        ),
        (
            "Load it as tokenizer=clipkit.Tokenizer(added_tokens={'<a>': 5}, context_length=7), or",
            "Load it as --tokenizer a JSON file of them and their ids, or",
        ),
        (
            "It is a model: load it by clipkit.load('a'), and make a classifier of it by "
            "ImageClassifier.zero_shot('a', class_names)",
            "It is a model: give --labels, and --model 'a'",
        ),
    ],
)
def test_what_builds_things_in_python_becomes_options(message: str, said: str) -> None:
    assert in_options(message, ["model", "tokenizer"]) == said


def test_the_phrases_are_those_of_the_library() -> None:
    """A phrase that no error has any more would be replaced by nobody."""
    sources = [path.read_text("utf-8") for path in PACKAGE.rglob("*.py")]
    joined = [re.sub(r'"\n\s*f?"', "", source) for source in sources if "_PHRASES" not in source]
    missing = [phrase for phrase in _PHRASES if not any(phrase in source for source in joined)]
    assert missing == []
