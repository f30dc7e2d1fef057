"""Tell a local folder from the published model or hub repository of the same name."""

from pathlib import Path

import pytest

from clipkit.checkpoints import registry
from clipkit.checkpoints.source import resolve
from clipkit.errors import CheckpointNotFoundError
from tests.helpers.hub_server import HubServer
from tests.helpers.repositories import REPO, Contents, write

# Published names in several spellings, a published repository, and any other.
NAMES = ["RN50", "rn50", "ViT-B-32", "ViT-B/32", registry.MODELS["RN50"].hub, REPO]
LOGS = {"train.log": b"loss 1.0", "config.yaml": b"", "events.out.tfevents": b""}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def repository_of(name: str) -> str:
    row = registry.find(name)
    return name if row is None else row.hub


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("files", [{}, LOGS])
def test_a_folder_without_a_model_hides_nothing(
    hub: HubServer, contents: Contents, tmp_path: Path, name: str, files: dict[str, bytes]
) -> None:
    write(Path(name), files)
    hub.add_repo(repository_of(name), contents("open_clip"))
    source = resolve(name, cache_dir=tmp_path / "cache")
    assert source.weights.is_relative_to(tmp_path / "cache")
    assert source.row is registry.find(name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weights", ["model.safetensors", "open_clip_model.safetensors", "a.pt"])
def test_a_folder_with_a_model_comes_first(hub: HubServer, name: str, weights: str) -> None:
    write(Path(name), {weights: b"weights"})
    assert resolve(name).weights == Path(name) / weights
    assert hub.requests == []


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_with_several_models_comes_first_too(hub: HubServer, name: str) -> None:
    write(Path(name), LOGS | {"epoch_1.pt": b"", "epoch_2.pt": b""})
    with pytest.raises(CheckpointNotFoundError, match=r"holds epoch_1\.pt, epoch_2\.pt"):
        resolve(name)
    assert hub.requests == []


@pytest.mark.parametrize("name", NAMES)
def test_a_path_spelled_as_one_means_the_folder(hub: HubServer, here: Path, name: str) -> None:
    write(Path(name), LOGS)
    for path in (f"./{name}", f"{name}/", f"../here/{name}", here / name, str(here / name)):
        with pytest.raises(CheckpointNotFoundError, match="the folder .* holds no weight file"):
            resolve(path)
    with pytest.raises(CheckpointNotFoundError, match="the folder .* holds no weight file"):
        resolve(Path(name))
    write(Path(name), {"model.safetensors": b"weights"})
    for path in (f"./{name}", f"{name}/", f"../here/{name}", here / name, Path(name)):
        assert resolve(path).weights.resolve() == here / name / "model.safetensors"
    assert hub.requests == []


@pytest.mark.parametrize("name", NAMES)
def test_a_path_of_nothing_is_no_published_name(hub: HubServer, here: Path, name: str) -> None:
    for path in (f"./{name}", f"{name}/", here / name, Path(name)):
        with pytest.raises(CheckpointNotFoundError, match="there is no file or folder"):
            resolve(path)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["logs", "a/b/c"])
def test_a_folder_that_no_model_is_called_is_the_folder(hub: HubServer, name: str) -> None:
    write(Path(name), LOGS)
    with pytest.raises(CheckpointNotFoundError, match="the folder .* holds no weight file"):
        resolve(name)
    assert hub.requests == []


def test_a_folder_of_logs_is_named_when_the_hub_has_nothing(hub: HubServer) -> None:
    write(Path(REPO), LOGS)
    with pytest.raises(
        CheckpointNotFoundError,
        match=f"(?s)no repository '{REPO}'.*The local folder '{REPO}' holds no weight file either",
    ):
        resolve(REPO)
    with pytest.raises(
        CheckpointNotFoundError, match="(?s)no repository 'a/b'.*Nor is there a local folder"
    ):
        resolve("a/b")


def test_the_embedded_checkpoint_is_never_hidden(hub: HubServer) -> None:
    write(Path("tiny"), {"model.safetensors": b"weights"})
    assert resolve("tiny").config is not None
    assert resolve("./tiny").weights == Path("tiny/model.safetensors")
