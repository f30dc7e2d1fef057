"""Where names lead: folders and files, the hub in every layout, OpenAI's archives; online, offline and mistyped."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clipkit import CLIP, CLIPConfig, Tokenizer
from clipkit.checkpoints import registry
from clipkit.checkpoints.source import EMBEDDED, resolve
from clipkit.errors import (
    CheckpointNotFoundError,
    ConfigError,
    CorruptCheckpointError,
    DownloadError,
    UnknownModelError,
    UnsupportedCheckpointError,
)
from tests.helpers.hub_server import HubServer

REPO = "someone/small-clip"
ROW = "ViT-B/32"
REPO_OF_ROW = registry.MODELS[ROW].hub

# What a repository or folder in each layout holds.
Contents = Callable[[str], dict[str, bytes]]


@pytest.fixture(scope="module")
def contents(
    tmp_path_factory: pytest.TempPathFactory, vit: CLIP, small_tokenizer: Tokenizer
) -> Contents:
    """The small ViT's files in a layout; "own merges" is clipkit's layout with merges."""
    folder = tmp_path_factory.mktemp("layouts")
    plain = CLIP(vit.config)
    plain.load_state_dict(vit.state_dict())
    plain._tokenizer = small_tokenizer
    made: dict[str, dict[str, bytes]] = {}
    for layout in ("clipkit", "open_clip", "transformers"):
        plain.save_pretrained(str(folder / layout), layout=layout)
        made[layout] = {path.name: path.read_bytes() for path in (folder / layout).iterdir()}
    return lambda layout: dict(made[layout])


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def asked_for(hub: HubServer) -> list[str]:
    """Names of the files asked for, in order, without the second request that fetches what the first one found."""
    names = [
        request.path.rsplit("/", 1)[-1] for request in hub.requests if "/resolve/" in request.path
    ]
    return list(dict.fromkeys(names))


# Folders and files


def test_embedded() -> None:
    source = resolve("tiny")
    assert (
        source.weights == EMBEDDED / "model.safetensors"
        and source.merges is None
        and source.row is None
    )
    assert (
        source.config is not None
        and source.config.text.vocab_size == 49408
        and source.config.text.context_length == 77
    )


@pytest.mark.parametrize("layout", ["clipkit", "open_clip", "transformers"])
def test_folder_and_file(
    contents: Contents, tmp_path: Path, vit_config: CLIPConfig, layout: str
) -> None:
    folder = write(tmp_path / "ViT-B-32", contents(layout))  # a path wins over a name
    weights = folder / (
        "open_clip_model.safetensors" if layout == "open_clip" else "model.safetensors"
    )
    for name in (folder, weights):
        source = resolve(str(name))
        assert (source.weights, source.config, source.row) == (weights, vit_config, None)
        assert source.merges == folder / "merges.txt"
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


@pytest.mark.parametrize("layout", ["clipkit", "open_clip", "transformers"])
def test_the_only_file_of_a_folder_has_its_json(
    contents: Contents, tmp_path: Path, vit_config: CLIPConfig, layout: str
) -> None:
    files = contents(layout)
    weights = next(name for name in files if name.endswith(".safetensors"))
    files = {
        ("epoch_30.pt" if name == weights else name): content for name, content in files.items()
    }
    folder = write(tmp_path, files)
    source = resolve(str(folder))
    assert (source.weights.name, source.config) == ("epoch_30.pt", vit_config)
    assert (
        resolve(str(folder / "epoch_30.pt")).config is None
    )  # nothing says that they belong together


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
    ("text", "error", "message"),
    [
        (b'{"format": "clip', CorruptCheckpointError, r"config\.json is not JSON"),
        (b"\xff\xfe", CorruptCheckpointError, r"config\.json is not JSON"),
        (b'["clipkit"]', CorruptCheckpointError, r"config\.json must hold a JSON object, not list"),
        (b'{"format": "clipkit"}', ConfigError, "missing"),
        (
            b'{"format": "clipkit", "model": 3}',
            ConfigError,
            "CLIPConfig needs a mapping of its fields, not 3",
        ),
        (
            b'{"vision_config": 3}',
            ConfigError,
            r"config\.json states what no CLIP can be \(AttributeError",
        ),
        (
            b'{"vision_config": {"hidden_size": "768"}}',
            ConfigError,
            r"config\.json states what no CLIP can be",
        ),
        (
            b'{"vision_config": {"hidden_size": 0}}',
            ConfigError,
            r"states what no CLIP can be \(ZeroDivision",
        ),
        (
            b"{}",
            UnsupportedCheckpointError,
            r"config\.json describes .*not a CLIP with both towers",
        ),
    ],
)
def test_broken_json(
    contents: Contents, tmp_path: Path, text: bytes, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        resolve(str(write(tmp_path, contents("clipkit") | {"config.json": text})))


@pytest.mark.parametrize(
    "values",
    [
        {"model_cfg": 3},
        {"model_cfg": {"vision_cfg": [1]}},
        {"preprocess_cfg": [0.5]},
        {"model_cfg": {}},
    ],
)
def test_broken_open_clip_json(contents: Contents, tmp_path: Path, values: dict[str, Any]) -> None:
    files = contents("open_clip")
    values = json.loads(files["open_clip_config.json"]) | values
    with pytest.raises(
        ConfigError, match=r"open_clip_config\.json (states what no CLIP can be|has no)"
    ):
        resolve(
            str(write(tmp_path, files | {"open_clip_config.json": json.dumps(values).encode()}))
        )


# Names of nothing


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


# The hub


@pytest.mark.parametrize("layout", ["clipkit", "open_clip", "transformers"])
@pytest.mark.parametrize("prefix", ["", "hf-hub:"])
def test_hub(
    hub: HubServer,
    contents: Contents,
    tmp_path: Path,
    vit_config: CLIPConfig,
    layout: str,
    prefix: str,
) -> None:
    hub.add_repo(REPO, contents(layout))
    source = resolve(prefix + REPO, cache_dir=tmp_path)
    assert source.config == vit_config and source.row is None
    assert source.weights.read_bytes() == contents(layout)[source.weights.name]
    assert (
        source.merges is not None and source.merges.read_bytes() == contents(layout)["merges.txt"]
    )


def test_hub_with_both_layouts(hub: HubServer, contents: Contents, tmp_path: Path) -> None:
    hub.add_repo(REPO, contents("transformers") | contents("open_clip"))
    assert resolve(REPO, cache_dir=tmp_path).weights.name == "open_clip_model.safetensors"
    assert "config.json" not in asked_for(hub) and "model.safetensors" not in asked_for(hub)


@pytest.mark.parametrize("layout", ["open_clip", "transformers"])
def test_hub_with_bin_alone(
    hub: HubServer, contents: Contents, tmp_path: Path, layout: str
) -> None:
    files = {
        name: content
        for name, content in contents(layout).items()
        if not name.endswith(".safetensors")
    }
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
    """Old repositories have none. That it is not there is known offline too, and is no failure to fetch it."""
    files = contents("transformers")
    del files["preprocessor_config.json"]
    hub.add_repo(REPO, files)
    config = resolve(REPO, cache_dir=tmp_path).config
    assert config is not None and config == replace(vit_config, preprocess=config.preprocess)
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
    hub.add_repo(
        REPO,
        contents("transformers")
        | {"config.json": b'{"model_type": "siglip", "vision_config": {}}'},
    )
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
        match=r"none of the files tried: open_clip_config\.json, config\.json",
    ):
        resolve(REPO, cache_dir=tmp_path)
    hub.add_repo(
        "someone/else", {"config.json": contents("clipkit")["config.json"], "merges.txt": b""}
    )
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
    assert source.weights.name == "open_clip_model.safetensors" and source.config == vit_config


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


# Published models


@pytest.fixture
def archive(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """OpenAI's archive of `ROW`, served beside the hub at an address of the published form."""
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
    hub.add_repo(
        REPO_OF_ROW,
        files | {"config.json": b'{"architecture": "vit"}', "model.safetensors": b"the tower"},
    )
    source = resolve(name, cache_dir=tmp_path)
    assert (
        source.row is registry.MODELS[ROW] and source.weights.name == "open_clip_model.safetensors"
    )
    assert asked_for(hub) == ["open_clip_config.json", "merges.txt", "open_clip_model.safetensors"]


def test_published_repository_without_json(
    hub: HubServer, contents: Contents, tmp_path: Path
) -> None:
    """Its row knows the config. The other config.json there, timm's, is not mistaken for transformers'."""
    weights = contents("open_clip")["open_clip_model.safetensors"]
    hub.add_repo(
        REPO_OF_ROW,
        {"open_clip_pytorch_model.bin": weights, "config.json": b'{"architecture": "vit"}'},
    )
    source = resolve(ROW, cache_dir=tmp_path)
    assert source.config is None and source.row is not None
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
    assert source.weights == tmp_path / "ViT-B-32.pt" and source.weights.read_bytes() == archive
    assert source.row is not None and source.row.name == ROW and source.config is None
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
    assert not [
        path for path in tmp_path.rglob("*") if path.is_file() and ".no_exist" not in path.parts
    ]


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
    tried = rf"(?s)gave {REPO_OF_ROW} .*own archive was tried too: .*ViT-B-32\.pt.*pass the path of the file or folder"
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
