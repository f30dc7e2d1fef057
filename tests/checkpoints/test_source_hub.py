"""Find a hub id, in every layout, online and offline."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from clipkit import CLIP, CLIPConfig, TextConfig, ViTConfig
from clipkit.checkpoints.save import FolderLayout
from clipkit.checkpoints.source import SHARDS, WEIGHT_FILES, resolve
from clipkit.errors import (
    CheckpointNotFoundError,
    ConfigError,
    DownloadError,
    UnsupportedCheckpointError,
)
from clipkit.files import write_weights
from tests.helpers.hub_server import HubServer
from tests.helpers.models import assert_same
from tests.helpers.repositories import LAYOUTS, REPO, Contents, asked_for


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("prefix", ["", "hf-hub:"])
def test_hub(
    hub: HubServer,
    contents: Contents,
    tmp_path: Path,
    vit_config: CLIPConfig,
    layout: FolderLayout,
    prefix: str,
) -> None:
    hub.add_repo(REPO, contents(layout))
    source = resolve(prefix + REPO, cache_dir=tmp_path)
    assert source.config == vit_config
    assert source.row is None
    assert source.weights.read_bytes() == contents(layout)[source.weights.name]
    assert source.tokenizer.merges is not None
    assert source.tokenizer.merges.read_bytes() == contents(layout)["merges.txt"]


def test_hub_with_both_layouts(hub: HubServer, contents: Contents, tmp_path: Path) -> None:
    hub.add_repo(REPO, contents("transformers") | contents("open_clip"))
    assert resolve(REPO, cache_dir=tmp_path).weights.name == "open_clip_model.safetensors"
    assert "config.json" not in asked_for(hub)
    assert "model.safetensors" not in asked_for(hub)


@pytest.mark.parametrize("layout", ["open_clip", "transformers"])
def test_hub_with_bin_alone(
    hub: HubServer, contents: Contents, tmp_path: Path, layout: FolderLayout
) -> None:
    files = contents(layout)
    weights = next(name for name in files if name.endswith(".safetensors"))
    del files[weights]
    name = "open_clip_pytorch_model.bin" if layout == "open_clip" else "pytorch_model.bin"
    hub.add_repo(REPO, files | {name: b"pickle"})
    assert resolve(REPO, cache_dir=tmp_path).weights.name == name


def test_hub_with_shards(hub: HubServer, contents: Contents, tmp_path: Path) -> None:
    files = contents("transformers")
    del files["model.safetensors"]
    index = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    shards = {"model-1-of-2.safetensors": b"1", "model-2-of-2.safetensors": b"2"}
    hub.add_repo(
        REPO, files | shards | {"model.safetensors.index.json": json.dumps(index).encode()}
    )
    source = resolve(REPO, cache_dir=tmp_path)
    assert source.weights.name == "model.safetensors.index.json"
    assert [(source.weights.parent / name).read_bytes() for name in shards] == [b"1", b"2"]


def test_hub_without_a_processor_is_remembered_offline(
    hub: HubServer, contents: Contents, tmp_path: Path, vit_config: CLIPConfig
) -> None:
    """Old repositories have none. Offline that is known too, and is no failure to fetch it."""
    files = contents("transformers")
    del files["preprocessor_config.json"]
    hub.add_repo(REPO, files)
    config = resolve(REPO, cache_dir=tmp_path).config
    assert config is not None
    assert config == replace(vit_config, preprocess=config.preprocess)
    hub.stop()
    assert resolve(REPO, cache_dir=tmp_path).config == config
    assert resolve(REPO, cache_dir=tmp_path, local_files_only=True).config == config


def test_what_was_not_there_before_is_not_asked_for_again(
    hub: HubServer, contents: Contents, tmp_path: Path
) -> None:
    """Without a network the client tries hard for each file that is not in its cache."""
    hub.add_repo(REPO, contents("transformers"))
    source = resolve(REPO, cache_dir=tmp_path)
    assert asked_for(hub)[:2] == ["open_clip_config.json", "config.json"]
    hub.requests.clear()
    assert resolve(REPO, cache_dir=tmp_path) == source
    assert asked_for(hub) == [
        "config.json",
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer_config.json",
        "tokenizer.json",
        "added_tokens.json",
        "preprocessor_config.json",
        "model.safetensors",
    ]
    hub.add_repo(REPO, contents("open_clip"))  # but it is, where what was there is gone
    assert resolve(REPO, cache_dir=tmp_path).weights.name == "open_clip_model.safetensors"


def test_hub_that_loses_a_file_on_the_way_is_no_default(
    hub: HubServer, contents: Contents, tmp_path: Path
) -> None:
    """A processor that could not be fetched must not quietly become OpenAI's."""
    hub.add_repo(REPO, contents("transformers"))
    source = resolve(REPO, cache_dir=tmp_path)
    next(tmp_path.rglob("preprocessor_config.json")).unlink()
    hub.stop()
    with pytest.raises(DownloadError, match=r"preprocessor_config\.json"):
        resolve(REPO, cache_dir=tmp_path)
    assert source.config is not None


def test_json_of_another_model_is_refused_before_the_weights_are_fetched(
    hub: HubServer, contents: Contents, tmp_path: Path
) -> None:
    siglip = {"config.json": b'{"model_type": "siglip", "vision_config": {}}'}
    hub.add_repo(REPO, contents("transformers") | siglip)
    with pytest.raises(UnsupportedCheckpointError, match="describes a 'siglip' model"):
        resolve(REPO, cache_dir=tmp_path)
    assert "model.safetensors" not in asked_for(hub)
    assert resolve(REPO, cache_dir=tmp_path, ignore_config=True).weights.name == "model.safetensors"


def test_hub_without_json_or_without_weights(
    hub: HubServer, contents: Contents, tmp_path: Path
) -> None:
    hub.add_repo(REPO, {"model.safetensors": b""})
    with pytest.raises(
        CheckpointNotFoundError,
        match=r"none of the files tried: open_clip_config\.json, config\.json.* pass config= with",
    ):
        resolve(REPO, cache_dir=tmp_path)
    assert "model.safetensors" not in asked_for(hub)
    config = {"config.json": contents("clipkit")["config.json"], "merges.txt": b""}
    hub.add_repo("someone/else", config)
    with pytest.raises(
        CheckpointNotFoundError,
        match=r"none of the files tried: model\.safetensors, pytorch_model\.bin",
    ):
        resolve("someone/else", cache_dir=tmp_path)
    with pytest.raises(CheckpointNotFoundError, match="The hub has no repository 'someone/nobody'"):
        resolve("someone/nobody", cache_dir=tmp_path)


def test_revision_and_token(
    hub: HubServer, contents: Contents, tmp_path: Path, vit_config: CLIPConfig
) -> None:
    hub.add_repo(REPO, contents("clipkit"), token="hf_secret")
    hub.add_repo(REPO, contents("open_clip"), revision="v1", token="hf_secret")
    with pytest.raises(
        CheckpointNotFoundError, match="or it is private; for a private one pass token="
    ):
        resolve(REPO, cache_dir=tmp_path)
    assert resolve(REPO, cache_dir=tmp_path, token="hf_secret").weights.name == "model.safetensors"
    source = resolve(REPO, cache_dir=tmp_path, token="hf_secret", revision="v1")
    assert source.weights.name == "open_clip_model.safetensors"
    assert source.config == vit_config


def test_local_files_only(hub: HubServer, contents: Contents, tmp_path: Path) -> None:
    hub.add_repo(REPO, contents("clipkit"))
    with pytest.raises(
        DownloadError, match="asked for local files only.*pass the path of the file or folder"
    ):
        resolve(REPO, cache_dir=tmp_path, local_files_only=True)
    online = resolve(REPO, cache_dir=tmp_path)
    asked = len(hub.requests)
    assert resolve(REPO, cache_dir=tmp_path, local_files_only=True) == online
    assert len(hub.requests) == asked


# Repositories without JSON


@pytest.mark.parametrize("name", WEIGHT_FILES)
def test_weights_alone_of_a_caller_who_knows_the_config(
    hub: HubServer, contents: Contents, tmp_path: Path, name: str
) -> None:
    files = {name: b"weights"}
    if name in SHARDS:
        files = {name: b'{"weight_map": {"a": "shard.bin"}}', "shard.bin": b"weights"}
    hub.add_repo(REPO, files)
    source = resolve(REPO, cache_dir=tmp_path, ignore_config=True)
    assert source.weights.name == name
    assert source.config is None
    assert resolve(REPO, cache_dir=tmp_path, needs_config=False) == source
    hub.stop()
    assert resolve(REPO, cache_dir=tmp_path, ignore_config=True) == source


@pytest.mark.parametrize("ignore_config", [True, False])
def test_no_weights_and_no_repository_for_a_caller_who_knows_the_config(
    hub: HubServer, tmp_path: Path, ignore_config: bool
) -> None:
    hub.add_repo(REPO, {"README.md": b""})
    with pytest.raises(
        CheckpointNotFoundError, match=r"none of the files tried: open_clip_model\.safetensors, "
    ):
        resolve(REPO, cache_dir=tmp_path, ignore_config=ignore_config, needs_config=False)
    with pytest.raises(CheckpointNotFoundError, match="The hub has no repository 'someone/nobody'"):
        resolve(
            "someone/nobody", cache_dir=tmp_path, ignore_config=ignore_config, needs_config=False
        )


def test_models_without_json_by_config_or_by_activation_and_head_width(
    hub: HubServer, tmp_path: Path
) -> None:
    vision = ViTConfig(
        resolution=(32, 32), patch_size=8, width=64, layers=1, activation="gelu", head_width=16
    )
    text = TextConfig(width=64, layers=1, activation="gelu", context_length=8, vocab_size=520)
    model = CLIP(CLIPConfig(embed_dim=16, vision=vision, text=text))
    write_weights(model.state_dict(), tmp_path / "model.safetensors")
    hub.add_repo(REPO, {"model.safetensors": (tmp_path / "model.safetensors").read_bytes()})
    cache = tmp_path / "cache"
    with pytest.raises(CheckpointNotFoundError, match="pass config= .*activation= and head_width="):
        CLIP.from_pretrained(REPO, device="cpu", cache_dir=cache)
    with pytest.raises(CheckpointNotFoundError, match="pass config= .*activation= and head_width="):
        CLIP.from_pretrained(REPO, device="cpu", cache_dir=cache, activation="gelu")
    assert "model.safetensors" not in asked_for(hub)
    by_config = CLIP.from_pretrained(REPO, device="cpu", cache_dir=cache, config=model.config)
    assert_same(by_config, model)
    by_two = CLIP.from_pretrained(
        REPO, device="cpu", cache_dir=cache, activation="gelu", head_width=16
    )
    assert_same(by_two, model)


def test_stated_config_still_counts_beside_activation_and_head_width(
    hub: HubServer, contents: Contents, tmp_path: Path
) -> None:
    hub.add_repo(REPO, contents("clipkit"))
    with pytest.raises(ConfigError, match="contradicts what was asked"):
        CLIP.from_pretrained(
            REPO, device="cpu", cache_dir=tmp_path, activation="quick_gelu", head_width=32
        )
