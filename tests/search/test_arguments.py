"""What an index cannot be made of is told before anything is written."""

from pathlib import Path
from typing import Any

import pytest

from clipkit.errors import ConfigError
from clipkit.search import Index
from tests.search.conftest import ColorModel

WRONG: list[dict[str, Any]] = [
    {"model_name": 3},
    {"model_name": None},
    {"exclude": [3]},
    {"exclude": 3},
    {"exclude": "*.gif"},
    {"include_hidden": "no"},
    {"out": 3},
    {"out": ""},
]


@pytest.mark.parametrize("options", WRONG, ids=str)
def test_a_wrong_argument_leaves_an_index_as_it_was(options: dict[str, Any], folder: Path) -> None:
    index = Index.build(folder, ColorModel())
    before = {path: path.read_bytes() for path in sorted(index.folder.iterdir())}
    with pytest.raises(ConfigError):
        Index.build(folder, ColorModel(), **options)
    assert {path: path.read_bytes() for path in sorted(index.folder.iterdir())} == before


@pytest.mark.parametrize("options", WRONG[:6], ids=str)
def test_a_wrong_argument_makes_no_index(options: dict[str, Any], folder: Path) -> None:
    with pytest.raises(ConfigError):
        Index.build(folder, ColorModel(), **options)
    assert not (folder / ".clipkit").exists()


def test_an_empty_text_is_not_the_working_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError):
        Index.build("", ColorModel())
    assert not (folder / ".clipkit").exists()


@pytest.mark.parametrize("model", ["tiny", None, 3])
def test_what_is_no_model_is_told_what_one_is(model: Any, folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"model must be a CLIP.*from_pretrained"):
        Index.build(folder, model)


def test_a_folder_in_a_list_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a list of images holds the folder"):
        Index.build([folder / "red" / "0.png", folder], ColorModel(), tmp_path / "index")
    assert not (tmp_path / "index").exists()
