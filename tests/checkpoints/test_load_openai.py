"""Load OpenAI's archives, by path and by published name."""

import copy
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import clipkit
from clipkit import CLIP
from clipkit.checkpoints import registry
from clipkit.errors import ConfigError
from tests.helpers.hub_server import HubServer
from tests.helpers.model_files import read_files, write_json
from tests.helpers.openai_style import OpenAIStyle, two_rows_of_tokens


def check_openai_model(model: CLIP, original: OpenAIStyle) -> None:
    config = model.config
    assert config.vision.resolution == (48, 48)
    assert config.text.context_length == 16
    assert config.text.vocab_size == 600
    assert config.text.activation == "quick_gelu"
    assert config.vision.head_width == config.text.head_width == 64
    expected = original.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name.removeprefix("text.")].float()), name
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    tokens = two_rows_of_tokens()
    with torch.no_grad():
        image_features, text_features = copy.deepcopy(original).float()(images, tokens)
        torch.testing.assert_close(model.encode_image(images), image_features, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.encode_text(tokens), text_features, atol=1e-5, rtol=1e-5)
        cosines = F.normalize(image_features, dim=-1) @ F.normalize(text_features, dim=-1).T
        assert (cosines[0] - cosines[1]).abs().max() > 0.01  # else nothing has been shown
        logits, transposed = model(images, tokens)
        expected_logits = original.logit_scale.exp() * cosines
        torch.testing.assert_close(logits, expected_logits, atol=1e-3, rtol=1e-5)
        assert torch.equal(logits, transposed.T)


def test_openai_archive_without_torch_jit(
    openai_archive: Path, openai_model: OpenAIStyle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("torch was asked to load the archive")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(torch.jit, "load", refuse)
    check_openai_model(clipkit.load(openai_archive, "cpu")[0], openai_model)
    half = CLIP.from_pretrained(openai_archive, dtype=torch.float16, device="cpu")
    others = [value for name, value in half.state_dict().items() if name != "logit_scale"]
    assert {value.dtype for value in others} == {torch.float16}
    assert torch.equal(state_of(half, "visual.proj"), openai_model.visual.proj)


def test_what_is_asked_must_not_contradict_an_openai_archive(openai_archive: Path) -> None:
    CLIP.from_pretrained(openai_archive, activation="quick_gelu", head_width=64, device="cpu")
    with pytest.raises(ConfigError, match=r"vision\.activation: 'quick_gelu' / 'gelu'"):
        CLIP.from_pretrained(openai_archive, activation="gelu", device="cpu")


@pytest.fixture
def small_row(
    monkeypatch: pytest.MonkeyPatch, hub: HubServer, openai_archive: Path
) -> registry.Model:
    """Let ViT-B/32 mean OpenAIStyle, and serve its archive beside the hub."""
    digest = hashlib.sha256(openai_archive.read_bytes()).hexdigest()
    config = CLIP.from_pretrained(openai_archive, device="cpu").config
    row = replace(registry.MODELS["ViT-B/32"], config=config, openai=("ViT-B-32.pt", digest))
    for spelling in ("vit-b-32", registry._spelling(row.hub)):
        monkeypatch.setitem(registry._BY_SPELLING, spelling, row)
    monkeypatch.setattr(registry, "OPENAI_ARCHIVES", hub.url + "/clip/{sha256}/{file}")
    hub.add_blob(f"/clip/{digest}/ViT-B-32.pt", openai_archive.read_bytes())
    return row


@pytest.mark.parametrize("name", ["ViT-B/32", "ViT-B-32"])
def test_published_name_from_openai_when_the_hub_has_it_not(
    small_row: registry.Model, openai_model: OpenAIStyle, hub: HubServer, tmp_path: Path, name: str
) -> None:
    model, _ = clipkit.load(name, "cpu", download_root=str(tmp_path))
    check_openai_model(model, openai_model)
    assert [path.name for path in tmp_path.glob("*.pt")] == ["ViT-B-32.pt"]


def save_as_open_clip(archive: Path, folder: Path) -> None:
    model = CLIP.from_pretrained(archive, device="cpu")
    model.save_pretrained(folder, layout="open_clip", dtype=torch.float16)


def state_of(model: CLIP, name: str) -> Tensor:
    return model.state_dict()[name]


def test_published_name_from_the_hub(
    small_row: registry.Model,
    openai_model: OpenAIStyle,
    hub: HubServer,
    tmp_path: Path,
    openai_archive: Path,
) -> None:
    folder = tmp_path / "saved"
    save_as_open_clip(openai_archive, folder)
    hub.add_repo(small_row.hub, read_files(folder))
    model = CLIP.from_pretrained("ViT-B/32", cache_dir=tmp_path / "cache", device="cpu")
    assert torch.equal(state_of(model, "visual.proj"), openai_model.visual.proj.float())
    assert not list(tmp_path.rglob("*.pt"))


def test_published_repository_that_contradicts_its_row(
    small_row: registry.Model, hub: HubServer, tmp_path: Path, openai_archive: Path
) -> None:
    """The weights cannot show which of the two is right."""
    folder = tmp_path / "saved"
    cache = tmp_path / "cache"
    save_as_open_clip(openai_archive, folder)
    values = json.loads((folder / "open_clip_config.json").read_text())
    values["model_cfg"]["quick_gelu"] = False
    write_json(folder / "open_clip_config.json", values)
    hub.add_repo(small_row.hub, read_files(folder))
    message = (
        r"otherwise than the registry says of 'ViT-B/32' .*"
        r"vision\.activation: 'gelu' / 'quick_gelu'; text\.activation"
    )
    with pytest.raises(ConfigError, match=message):
        CLIP.from_pretrained("ViT-B/32", cache_dir=cache, device="cpu")
    settled = CLIP.from_pretrained(
        "ViT-B/32", cache_dir=cache, config=small_row.config, device="cpu"
    )
    assert settled.config == small_row.config
