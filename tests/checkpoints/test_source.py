"""Find folders and files by name, and refuse names of nothing."""

from pathlib import Path

import pytest

import clipkit
from clipkit import CLIPConfig
from clipkit.checkpoints.embedded import EMBEDDED
from clipkit.checkpoints.save import FolderLayout
from clipkit.checkpoints.source import resolve
from clipkit.errors import CheckpointNotFoundError, UnknownModelError, UnsupportedCheckpointError
from tests.helpers.hub_server import HubServer
from tests.helpers.repositories import LAYOUTS, Contents, write


def test_embedded() -> None:
    source = resolve("tiny")
    assert source.weights == EMBEDDED / "model.safetensors"
    assert source.tokenizer.merges is None
    assert source.row is None
    assert source.config is not None
    assert source.config.text.vocab_size == 49408
    assert source.config.text.context_length == 77


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folder_and_file(
    contents: Contents, tmp_path: Path, vit_config: CLIPConfig, layout: FolderLayout
) -> None:
    folder = write(tmp_path / "ViT-B-32", contents(layout))  # a path wins over a name
    weights = folder / "model.safetensors"
    if layout == "open_clip":
        weights = folder / "open_clip_model.safetensors"
    for name in (folder, weights):
        source = resolve(str(name))
        assert source == resolve(name)
        assert source.weights == weights
        assert source.config == vit_config
        assert source.row is None
        assert source.tokenizer.merges == folder / "merges.txt"
        assert resolve(str(name), ignore_config=True).config is None


def test_home_folder(contents: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write(tmp_path / "clip", contents("clipkit"))
    assert resolve("~/clip").weights == tmp_path / "clip" / "model.safetensors"


def test_both_layouts_in_one_folder(contents: Contents, tmp_path: Path) -> None:
    write(tmp_path, contents("transformers") | contents("open_clip"))
    assert resolve(str(tmp_path)).weights.name == "open_clip_model.safetensors"
    assert resolve(str(tmp_path / "model.safetensors")).weights.name == "model.safetensors"


def test_weights_in_the_order_of_preference(tmp_path: Path) -> None:
    order = [
        "open_clip_model.safetensors",
        "open_clip_pytorch_model.safetensors",
        "open_clip_pytorch_model.bin",
        "model.safetensors",
        "pytorch_model.bin",
        "model.safetensors.index.json",
        "pytorch_model.bin.index.json",
    ]
    write(tmp_path, dict.fromkeys([*order, "other.pt"], b"{}"))
    for name in order:
        assert resolve(str(tmp_path)).weights.name == name
        (tmp_path / name).unlink()
    assert resolve(str(tmp_path)).weights.name == "other.pt"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_only_file_of_a_folder_has_its_json(
    contents: Contents, tmp_path: Path, vit_config: CLIPConfig, layout: FolderLayout
) -> None:
    files = contents(layout)
    weights = next(name for name in files if name.endswith(".safetensors"))
    files["epoch_30.pt"] = files.pop(weights)
    folder = write(tmp_path, files)
    source = resolve(str(folder))
    assert source.weights.name == "epoch_30.pt"
    assert source.config == vit_config
    # Nothing says that the file and the JSON beside it belong together.
    assert resolve(str(folder / "epoch_30.pt")).config is None


def test_folders_that_do_not_tell(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointNotFoundError,
        match="holds no weight file: expected one of open_clip_model.safetensors",
    ):
        resolve(str(tmp_path))
    write(tmp_path, {"a.pt": b"", "b.bin": b"", "notes.txt": b""})
    with pytest.raises(
        CheckpointNotFoundError, match=r"holds a\.pt, b\.bin: expected .*\. Pass the path of a file"
    ):
        resolve(str(tmp_path))


def test_merges_that_are_named_and_not_there(contents: Contents, tmp_path: Path) -> None:
    files = contents("clipkit")
    del files["merges.txt"]
    with pytest.raises(CheckpointNotFoundError, match=r"has no merges\.txt"):
        resolve(str(write(tmp_path, files)))


@pytest.mark.parametrize(
    "name", ["weights.pt", "./ViT-B-32x", "/no/such/folder", "no/siglip.safetensors", "~/nothing"]
)
def test_paths_of_nothing(hub: HubServer, name: str) -> None:
    with pytest.raises(CheckpointNotFoundError, match=f"there is no file or folder '{name}'"):
        resolve(name)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("ViT-B/33", "ViT-B/32"),
        ("ViT-L-14-337", "ViT-L/14@336px"),
        ("RN50x5", "RN50x4"),
        ("RN50/cc13m", "RN50/cc12m"),
    ],
)
def test_mistyped_names(hub: HubServer, name: str, close: str) -> None:
    with pytest.raises(
        UnknownModelError,
        match=f"'{name}' is no published model.*did you mean .*{close}.*list_models",
    ):
        resolve(name)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["", "~nobody-of-this-name/x", "a" * 300, "a\0b"])
def test_names_that_no_path_can_have(hub: HubServer, name: str) -> None:
    with pytest.raises(UnknownModelError, match="is no published model"):
        clipkit.load(name, "cpu")
    assert hub.requests == []


@pytest.mark.parametrize("name", ["", "nonsense", "a/b/c", "owner/na me"])
def test_names_of_nothing(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        (UnknownModelError, CheckpointNotFoundError), match="is no published model|no weight file"
    ):
        resolve(name)
    assert hub.requests == []


@pytest.mark.parametrize(
    "name", ["google/siglip-base-patch16-224", "hf-hub:BAAI/EVA-CLIP-8B", "MobileCLIP-S1"]
)
def test_other_models_are_refused_before_anything_is_fetched(hub: HubServer, name: str) -> None:
    with pytest.raises(UnsupportedCheckpointError, match="is not a plain CLIP"):
        resolve(name)
    assert hub.requests == []
