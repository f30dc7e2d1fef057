"""Test what names mean: activations, folders, and models without a network (kinds K9, M, Y9)."""

import socket
import time
from pathlib import Path

import pytest

import clipkit
from clipkit import CLIP, CLIPConfig
from clipkit.checkpoints import hub as hub_module
from clipkit.checkpoints import registry
from clipkit.checkpoints.load import published_config
from clipkit.checkpoints.source import resolve
from clipkit.errors import (
    CheckpointNotFoundError,
    ConfigError,
    DownloadError,
    UnknownModelError,
)
from tests.helpers.hub_server import HubServer
from tests.helpers.models import VIT, random_clip

VITS = ["B-32", "B-32-256", "B-16", "B-16-plus-240", "L-14", "L-14-336", "H-14", "g-14", "bigG-14"]
RESNETS = ["RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"]


# Kind M: activation by an ambiguous name.
@pytest.mark.parametrize("name", VITS)
def test_hyphens_are_open_clips_and_mean_gelu_unless_quickgelu_is_said(name: str) -> None:
    gelu = published_config(f"ViT-{name}")
    quick = published_config(f"ViT-{name}-quickgelu")
    assert gelu.text.activation == "gelu"
    assert quick.text.activation == "quick_gelu"
    assert getattr(gelu.vision, "activation", None) == "gelu"
    assert getattr(quick.vision, "activation", None) == "quick_gelu"
    assert gelu.vision.resolution == quick.vision.resolution


@pytest.mark.parametrize("name", ["ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px"])
def test_a_slash_is_openais_and_means_quickgelu(name: str) -> None:
    assert published_config(name) == registry.MODELS[name].config
    assert published_config(name).text.activation == "quick_gelu"


@pytest.mark.parametrize("name", RESNETS)
def test_names_that_both_spell_alike_are_an_error_that_lists_the_choices(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}/openai' or '{name}-quickgelu'.*activation="):
        published_config(name)
    assert published_config(f"{name}/openai") == registry.MODELS[name].config
    assert published_config(f"{name}-quickgelu").text.activation == "quick_gelu"
    assert published_config(name, "gelu").text.activation == "gelu"
    assert published_config(name, "quick_gelu").text.activation == "quick_gelu"


def test_a_tag_or_a_hub_id_settles_the_activation() -> None:
    assert published_config("ViT-B-32/laion2b_s34b_b79k").text.activation == "gelu"
    assert published_config("ViT-B-32/metaclip_400m").text.activation == "quick_gelu"
    assert published_config("timm/resnet50_clip.openai").text.activation == "quick_gelu"
    with pytest.raises(UnknownModelError, match="ViT-B-33"):
        published_config("ViT-B-33")


def test_loading_by_name_still_means_openais_published_weights() -> None:
    for name in ("ViT-B-32", "RN50", "ViT-B-32/openai", "RN50/openai"):
        row = registry.find(name)
        assert row is not None
        assert row.openai is not None


def test_names_that_an_error_advises_are_clear() -> None:
    for row in registry.MODELS.values():
        assert published_config(registry.clear_name(row)) == row.config


# Kind K9: a folder of one's runs does not hide a published name.


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["RN50", "ViT-B/32", "owner/name"])
def test_a_folder_of_runs_does_not_hide_a_published_name(name: str, here: Path) -> None:
    for file in ("run1/checkpoint.pt", "model/notes.txt", "log.txt", "photo.jpg"):
        (here / name / file).parent.mkdir(parents=True, exist_ok=True)
        (here / name / file).touch()
    (here / name / "best.pt").mkdir()  # a folder, whatever its name
    with pytest.raises(DownloadError, match="Neither the hub nor the cache gave"):
        resolve(name, local_files_only=True)
    with pytest.raises(CheckpointNotFoundError, match="the folder .* holds no weight file"):
        resolve(f"./{name}")


@pytest.mark.parametrize("name", ["RN50", "ViT-B/32", "mine"])
def test_the_model_of_a_run_counts_as_that_of_its_folder(name: str, here: Path, vit: CLIP) -> None:
    vit.save_pretrained(here / name / "model")
    assert resolve(name).config == vit.config
    assert resolve(name).weights == Path(name, "model", "model.safetensors")


# A save that was killed in its swap has its files in a folder of its own. Whoever looks for weights
# moves them to their places first.


def kill_in_swap(folder: Path, config: CLIPConfig) -> None:
    """Leave a folder as a save that was killed at the worst moment does."""
    random_clip(config).save_pretrained(folder)
    (folder / ".swap").mkdir()
    for path in [*folder.iterdir()]:
        if path.name != ".swap":
            path.rename(folder / ".swap" / path.name)


@pytest.mark.parametrize(
    ("saved", "name"),
    [
        ("RN50", "RN50"),
        ("ViT-B/32", "ViT-B/32"),
        ("mine", "mine"),
        ("mine", "./mine"),
        ("mine", "mine/model.safetensors"),
        ("run/model", "run"),
        ("RN50/model", "RN50"),
    ],
)
def test_what_a_killed_save_left_is_finished_first(saved: str, name: str, here: Path) -> None:
    kill_in_swap(here / saved, VIT)
    loaded, _ = clipkit.load(name, device="cpu")
    assert loaded.config == VIT
    assert not (here / saved / ".swap").exists()


# Kind Y9: without a network.


@pytest.mark.parametrize("how", ["stopped", "offline"])
def test_without_a_network_one_error_says_how_to_go_on(
    how: str, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    monkeypatch.setattr(registry, "OPENAI_ARCHIVES", hub.url + "/clip/{sha256}/{file}")
    if how == "stopped":
        hub.stop()
    else:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="(?s)hf download timm/vit_base.*copy") as caught:
        clipkit.load("ViT-B/32", cache_dir=tmp_path)
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None
    assert str(error).count(str(tmp_path)) >= 2
    assert str(tmp_path / "ViT-B-32.pt") in str(error)
    assert "models--timm--vit_base_patch32_clip_224.openai" in str(error)
    assert sum(waits) < 1  # the client would wait for half a minute between its tries


def test_a_repository_without_a_network_is_one_error(hub: HubServer, tmp_path: Path) -> None:
    hub.stop()
    with pytest.raises(
        DownloadError, match="hf download someone/clip.*(?s:.)*Nor is there"
    ) as caught:
        clipkit.load("someone/clip", cache_dir=tmp_path)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_a_server_that_says_nothing_is_given_up_soon(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(hub_module, "_PATIENCE", 0.2)
        constants = "huggingface_hub.constants"
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(f"{constants}.ENDPOINT", address)
        monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(registry, "OPENAI_ARCHIVES", address + "/clip/{sha256}/{file}")
        start = time.monotonic()
        with pytest.raises(DownloadError, match="(?s)timed out.*own archive was tried too"):
            clipkit.load("ViT-B/32", cache_dir=tmp_path)
        assert time.monotonic() - start < 5


def test_a_server_is_waited_for_as_the_clients_variable_says(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience: list[float] = []

    def ask(url: str, *, timeout: float, **options: object) -> None:
        patience.append(timeout)

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", ask)
    for is_set in (False, True):
        if is_set:
            monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "30")
            monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 30)
        with pytest.raises(CheckpointNotFoundError, match="someone/clip"):
            clipkit.load("someone/clip", cache_dir=tmp_path)
    assert set(patience) == {4.0, 30}
