"""Test that saved classifiers are whole, that their parts know each other, and what refuses to be.

Kinds X8 (files of one thing that are replaced one by one), I (the file system says no) and N (size
limits of formats).
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clipkit import CLIP, ImageClassifier
from clipkit.classify import folder as source
from clipkit.classify.head_files import read_head_file
from clipkit.errors import (
    CheckpointNotFoundError,
    ConfigError,
    CorruptCheckpointError,
    OutputError,
)
from tests.helpers.models import make_small_tokenizer
from tests.helpers.toy_classifier import NAMES, state_of, toy_features, toy_model

PARTS = ("model", "head.safetensors", "zero_shot.safetensors")


def make(seed: int, templates: str = "a {}.") -> ImageClassifier:
    """Return a fitted classifier, whose model and head differ by the seed."""
    model = toy_model(make_small_tokenizer())
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.01 * seed
    return ImageClassifier.zero_shot(model, NAMES, [templates]).fit(
        *toy_features(), "gaussian", alpha=1.0 + seed
    )


@pytest.fixture(scope="module")
def first() -> ImageClassifier:
    return make(0)


@pytest.fixture(scope="module")
def second() -> ImageClassifier:
    return make(1)


def load(folder: Path) -> ImageClassifier:
    return ImageClassifier.load(folder, device="cpu")


def weights_of(classifier: ImageClassifier) -> Tensor:
    """Return all weights in one row."""
    return torch.cat([value.double().flatten() for value in classifier.state_dict().values()])


def is_whole(found: ImageClassifier, expected: ImageClassifier) -> bool:
    """Return whether model, heads and words are those of one classifier."""
    return state_of(found) == state_of(expected) and torch.equal(
        weights_of(found), weights_of(expected)
    )


# Kind X8


def test_a_classifier_replaces_another_and_leaves_the_users_files(
    first: ImageClassifier, second: ImageClassifier, tmp_path: Path
) -> None:
    first.save(tmp_path)
    own = [tmp_path / name for name in ("README.md", "run/log.jsonl", "model/notes.txt")]
    own.append(tmp_path / "model" / "more" / "x.txt")
    for file in own:
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    second.save(tmp_path)
    assert is_whole(load(tmp_path), second)
    assert [file.read_text() for file in own] == ["mine"] * 4
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {*PARTS, "README.md", "run"}
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {"config.json", "merges.txt", "model.safetensors", "notes.txt", "more"}


class Killed(BaseException):
    """Stand for the end of the process."""


def kill_at(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """End everything at a call that changes folders, and at all later ones."""
    calls = iter(range(1000))

    def ending(real: Callable[..., Any]) -> Callable[..., Any]:
        def change(*arguments: Any, **options: Any) -> Any:
            if next(calls) >= call:
                raise Killed
            return real(*arguments, **options)

        return change

    for name in ("mkdir", "rename", "replace", "unlink", "rmdir", "link"):
        monkeypatch.setattr(os, name, ending(getattr(os, name)))


def test_a_save_that_is_killed_anywhere_leaves_the_old_or_the_new(
    first: ImageClassifier, second: ImageClassifier, tmp_path: Path
) -> None:
    results: list[bool] = []
    for call in range(60):
        folder = tmp_path / str(call)
        first.save(folder)
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, call)
            try:
                second.save(folder)
                ended = True
            except Killed:
                ended = False
        found = load(folder)
        is_new = is_whole(found, second)
        assert is_new or is_whole(found, first), call
        results.append(is_new)
        if ended:
            break
        shutil.rmtree(folder)
    assert results[0] is False
    assert results[-1] is True
    assert len(results) > 10
    assert results == sorted(results)  # once it is the new one, it stays the new one


@pytest.mark.parametrize("parts", [{part} for part in PARTS] + [{*PARTS[:2]}, {*PARTS[1:]}])
def test_a_mix_of_two_classifiers_is_refused(
    first: ImageClassifier, second: ImageClassifier, tmp_path: Path, parts: set[str]
) -> None:
    first.save(tmp_path / "first")
    second.save(tmp_path / "second")
    for part in parts:
        target = tmp_path / "first" / part
        if target.is_dir():
            shutil.rmtree(target)
            shutil.copytree(tmp_path / "second" / part, target)
        else:
            shutil.copy(tmp_path / "second" / part, target)
    message = "first: .*(are not of one classifier|is not the one that .* saved with).*as a whole"
    with pytest.raises(CorruptCheckpointError, match=message):
        load(tmp_path / "first")


def test_zero_shot_heads_of_one_model_and_other_prompts_are_told_apart(tmp_path: Path) -> None:
    make(0).save(tmp_path / "first")
    make(0, "the {}.").save(tmp_path / "second")
    name = "zero_shot.safetensors"
    shutil.copy(tmp_path / "second" / name, tmp_path / "first" / name)
    with pytest.raises(CorruptCheckpointError, match="are not of one classifier"):
        load(tmp_path / "first")


def test_a_model_with_another_preprocessing_is_another_model(
    first: ImageClassifier, tmp_path: Path
) -> None:
    first.save(tmp_path)
    config = tmp_path / "model" / "config.json"
    changed = config.read_text().replace("0.48145466", "0.5")
    assert changed != config.read_text()
    config.write_text(changed)
    with pytest.raises(CorruptCheckpointError, match="the model is not the one that"):
        load(tmp_path)


def test_a_copy_of_a_folder_is_the_same_classifier(first: ImageClassifier, tmp_path: Path) -> None:
    first.save(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.move(tmp_path / "b", tmp_path / "c")
    assert is_whole(load(tmp_path / "c"), first)


def test_a_classifier_is_saved_over_the_folder_that_it_came_from(
    first: ImageClassifier, tmp_path: Path
) -> None:
    first.save(tmp_path)
    loaded = load(tmp_path)
    loaded.add_classes(["yellow"])
    loaded.save(tmp_path)
    loaded.save(tmp_path)
    again = load(tmp_path)
    assert again.labels == [*NAMES, "yellow"]
    assert is_whole(again, loaded)


def test_a_missing_part_is_named(first: ImageClassifier, tmp_path: Path) -> None:
    for part in ("zero_shot.safetensors", "model/config.json", "model/model.safetensors", "model"):
        folder = tmp_path / part.replace("/", "-")
        first.save(folder)
        if (folder / part).is_dir():
            shutil.rmtree(folder / part)
        else:
            (folder / part).unlink()
        with pytest.raises(CheckpointNotFoundError, match=Path(part).name):
            load(folder)


# Kind I: refused before the work.


def in_the_way(tmp_path: Path) -> dict[str, Path]:
    """Return places where no classifier can be, each for another reason."""
    (tmp_path / "file").write_text("")
    for name in ("with-model", "with-head"):
        (tmp_path / name).mkdir()
    (tmp_path / "with-model" / "model").write_text("mine")
    (tmp_path / "with-head" / "head.safetensors").mkdir()
    return {
        "a file": tmp_path / "file",
        "below a file": tmp_path / "file" / "x",
        "a file called model": tmp_path / "with-model",
        "a folder called head": tmp_path / "with-head",
        "a long name": tmp_path / ("x" * 300),
    }


def test_places_that_cannot_be_written_are_refused_before_the_work(
    first: ImageClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CLIP, "save_pretrained", lambda *_: pytest.fail("wrote in vain"))
    for reason, place in in_the_way(tmp_path).items():
        with pytest.raises(OutputError, match="cannot write .*Choose"):
            first.save(place)
            pytest.fail(reason)
    assert (tmp_path / "with-model" / "model").read_text() == "mine"


def test_an_error_leaves_the_old_classifier(
    first: ImageClassifier, second: ImageClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first.save(tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(source, "save_head", full)
    with pytest.raises(OutputError, match="No space left on device. Free some space"):
        second.save(tmp_path)
    assert is_whole(load(tmp_path), first)
    assert {path.name for path in tmp_path.iterdir()} == {*PARTS}


def test_what_json_cannot_hold_is_refused(first: ImageClassifier, tmp_path: Path) -> None:
    odd = ImageClassifier(
        first.model, first.head, NAMES, first.zero_shot_head, first.prompts, {"method": object()}
    )
    with pytest.raises(ConfigError, match="must be JSON.*object is not JSON"):
        odd.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", [None, 5, "", b"x", "a\0b", ["x"]])
def test_what_is_no_path_is_refused(first: ImageClassifier, path: Any) -> None:
    """Kind D."""
    for verb in (first.save, load, first.export):
        with pytest.raises(ConfigError, match="a path is needed to save, load or export"):
            verb(path)


# Other folders


def test_the_folder_of_a_model_says_how_to_load_it(first: ImageClassifier, tmp_path: Path) -> None:
    first.model.save_pretrained(tmp_path / "plain")
    message = r"no head.safetensors.*a model: load it by clipkit.load\('.*plain'\).*zero_shot"
    with pytest.raises(CheckpointNotFoundError, match=message):
        load(tmp_path / "plain")
    first.save(tmp_path / "whole")
    with pytest.raises(CheckpointNotFoundError, match="It is a model"):
        load(tmp_path / "whole" / "model")
    (tmp_path / "empty").mkdir()
    for name, said in (("empty", "has no head"), ("nowhere", "does not exist")):
        with pytest.raises(CheckpointNotFoundError, match=f"{name} {said}"):
            load(tmp_path / name)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointNotFoundError, match="is a file, not a folder"):
        load(tmp_path / "file")


# Kind N


def test_labels_and_prompts_of_many_classes_leave_the_header_small(
    first: ImageClassifier, tmp_path: Path
) -> None:
    """The header of safetensors ends at 100 MB, which 22,000 classes with 80 prompts exceed."""
    names = [f"class number {i}" for i in range(2000)]
    prompts = [[f"a photo of {name}, {k}." for k in range(8)] for name in names]
    rows = torch.nn.functional.normalize(torch.randn(2000, 32), dim=1)
    head = type(first.zero_shot_head)(rows, first.model.logit_scale)
    ImageClassifier(first.model, head, names, head, prompts).save(tmp_path)
    for part in PARTS[1:]:
        with (tmp_path / part).open("rb") as file:
            assert int.from_bytes(file.read(8), "little") < 1000
    loaded = load(tmp_path)
    assert loaded.labels == names
    assert loaded.prompts == prompts
    assert torch.equal(loaded.zero_shot_head.weight, rows)


def test_a_head_says_what_it_was_saved_with(first: ImageClassifier, tmp_path: Path) -> None:
    first.save(tmp_path)
    assert read_head_file(tmp_path / PARTS[1]).beside.keys() == {"model", "zero_shot.safetensors"}
    assert read_head_file(tmp_path / PARTS[2]).beside.keys() == {"model"}
