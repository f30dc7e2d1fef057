"""Find published models: their repositories, and OpenAI's own archives."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from clipkit.checkpoints import registry
from clipkit.checkpoints.source import resolve
from clipkit.errors import CheckpointNotFoundError, CorruptCheckpointError, DownloadError
from tests.helpers.hub_server import HubServer
from tests.helpers.repositories import REPO, REPO_OF_ROW, ROW, Contents, asked_for


@pytest.fixture
def archive(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Serve OpenAI's archive of `ROW` beside the hub, at an address of the published form."""
    content = b"an archive" * 1000
    digest = hashlib.sha256(content).hexdigest()
    row = replace(registry.MODELS[ROW], openai=("ViT-B-32.pt", digest))
    monkeypatch.setitem(registry._BY_SPELLING, "vit-b-32", row)
    monkeypatch.setattr(registry, "OPENAI_ARCHIVES", hub.url + "/clip/{sha256}/{file}")
    hub.add_blob(f"/clip/{digest}/ViT-B-32.pt", content)
    return content


@pytest.mark.parametrize("name", [ROW, "ViT-B-32", REPO_OF_ROW])
def test_published_name_leads_to_its_repository(
    hub: HubServer, contents: Contents, tmp_path: Path, name: str
) -> None:
    files = contents("open_clip")
    tower = {"config.json": b'{"architecture": "vit"}', "model.safetensors": b"the tower"}
    hub.add_repo(REPO_OF_ROW, files | tower)
    source = resolve(name, cache_dir=tmp_path)
    assert source.row is registry.MODELS[ROW]
    assert source.weights.name == "open_clip_model.safetensors"
    assert asked_for(hub) == ["open_clip_config.json", "merges.txt", "open_clip_model.safetensors"]


def test_published_repository_without_json(
    hub: HubServer, contents: Contents, tmp_path: Path
) -> None:
    """Its row knows the config. The config.json there is timm's, and not for transformers."""
    weights = contents("open_clip")["open_clip_model.safetensors"]
    timm = {"config.json": b'{"architecture": "vit"}'}
    hub.add_repo(REPO_OF_ROW, timm | {"open_clip_pytorch_model.bin": weights})
    source = resolve(ROW, cache_dir=tmp_path)
    assert source.config is None
    assert source.row is not None
    assert source.weights.name == "open_clip_pytorch_model.bin"


def test_published_name_in_transformers_layout(
    hub: HubServer, contents: Contents, tmp_path: Path
) -> None:
    name = "TinyCLIP-ViT-40M-32-Text-19M-LAION400M"
    hub.add_repo(registry.MODELS[name].hub, contents("transformers"))
    assert resolve(name, cache_dir=tmp_path).weights.name == "model.safetensors"


@pytest.mark.parametrize("down", ["gone", "error"])
def test_openai_archive_stands_in_for_the_hub(
    hub: HubServer, archive: bytes, tmp_path: Path, down: str
) -> None:
    if down == "error":
        hub.add_repo(REPO_OF_ROW, {})
        hub.repos[REPO_OF_ROW].token = "hf_secret"
        hub.repos[REPO_OF_ROW].gated = True
    source = resolve(ROW, cache_dir=tmp_path)
    assert source.weights == tmp_path / "ViT-B-32.pt"
    assert source.weights.read_bytes() == archive
    assert source.row is not None
    assert source.row.name == ROW
    assert source.config is None
    hub.stop()
    assert resolve(ROW, cache_dir=tmp_path).weights == source.weights
    assert resolve(ROW, cache_dir=tmp_path, local_files_only=True).weights == source.weights


def test_openai_archive_with_a_wrong_checksum_is_not_kept(
    hub: HubServer, archive: bytes, tmp_path: Path
) -> None:
    address = next(iter(hub.blobs))
    hub.blobs[address] = archive + b"!"
    with pytest.raises(
        CorruptCheckpointError, match=r"ViT-B-32\.pt is not the promised file.*it was deleted"
    ):
        resolve(ROW, cache_dir=tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if ".no_exist" not in path.parts] == []


def test_openai_archive_does_not_stand_in_for_a_revision(
    hub: HubServer, archive: bytes, tmp_path: Path
) -> None:
    hub.add_repo(REPO_OF_ROW, {})
    with pytest.raises(CheckpointNotFoundError, match="has no revision 'v9'"):
        resolve(ROW, cache_dir=tmp_path, revision="v9")


def test_no_network_says_what_was_tried_and_how_to_go_on(
    hub: HubServer, archive: bytes, tmp_path: Path
) -> None:
    hub.stop()
    tried = (
        rf"(?s)gave {REPO_OF_ROW} .*own archive was tried too: .*"
        r"copy it to .*ViT-B-32\.pt, or pass its path"
    )
    with pytest.raises(DownloadError, match=tried):
        resolve(ROW, cache_dir=tmp_path)
    with pytest.raises(
        DownloadError,
        match=r"gave someone/small-clip .*the path of the file or folder, or pass the cache",
    ):
        resolve(REPO, cache_dir=tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_offline_mode_of_huggingface_hub(
    hub: HubServer,
    archive: bytes,
    contents: Contents,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.add_repo(REPO, contents("clipkit"))
    online = resolve(REPO, cache_dir=tmp_path)
    asked = len(hub.requests)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert resolve(REPO, cache_dir=tmp_path) == online
    with pytest.raises(
        DownloadError, match=r"(?s)gave .*own archive was tried too: Offline, and no good copy"
    ):
        resolve(ROW, cache_dir=tmp_path)
    assert len(hub.requests) == asked
