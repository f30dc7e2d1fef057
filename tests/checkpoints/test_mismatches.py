"""Refuse configs that contradict the caller or the weights, and models that are no plain CLIP."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from clipkit import CLIP
from clipkit.checkpoints.describe import to_open_clip
from clipkit.checkpoints.weights import read_weights
from clipkit.errors import (
    ConfigError,
    StateDictMismatchError,
    UnsupportedCheckpointError,
)
from clipkit.files import write_weights
from tests.helpers.model_files import (
    Write,
    write_clipkit,
    write_json,
    write_open_clip,
    write_transformers,
)
from tests.helpers.models import assert_same


def test_json_against_what_is_asked(clip: CLIP, tmp_path: Path) -> None:
    write_clipkit(clip, tmp_path)
    CLIP.from_pretrained(tmp_path, activation="gelu", head_width=32, device="cpu")
    with pytest.raises(
        ConfigError, match=r"contradicts what was asked .*text\.activation: 'gelu' / 'quick_gelu'"
    ):
        CLIP.from_pretrained(tmp_path, activation="quick_gelu", device="cpu")
    with pytest.raises(ConfigError, match=r"\(checkpoint / asked\): vision\.head_width: 32 / 16"):
        CLIP.from_pretrained(tmp_path, head_width=16, device="cpu")


def test_json_against_the_weights(vit: CLIP, tmp_path: Path) -> None:
    write_clipkit(vit, tmp_path)
    wrong = replace(vit.config, embed_dim=16, vision=replace(vit.config.vision, layers=3))
    write_json(tmp_path / "config.json", {"format": "clipkit", "model": wrong.to_dict()})
    with pytest.raises(StateDictMismatchError, match="weights do not fit the model") as caught:
        CLIP.from_pretrained(tmp_path, device="cpu")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{tmp_path / 'model.safetensors'}: weights do not fit the model")
    assert "  - visual.transformer.resblocks.2.attn.in_proj_weight (288, 96)" in lines
    assert lines[-2:] == [
        "  ! text.text_projection is (64, 32), the model has (64, 16)",
        "  ! visual.proj is (96, 32), the model has (96, 16)",
    ]


@pytest.mark.parametrize("write", [write_clipkit, write_open_clip, write_transformers])
def test_missing_unexpected_and_misshapen_weights(vit: CLIP, tmp_path: Path, write: Write) -> None:
    path = write(vit, tmp_path)
    state = read_weights(path)
    bias = next(name for name in state if name.endswith(("ln_final.bias", "final_layer_norm.bias")))
    state[bias] = torch.zeros(5)
    endings = ("ln_post.weight", "post_layernorm.weight")
    del state[next(name for name in state if name.endswith(endings))]
    write_weights(state | {"visual.extra": torch.zeros(2, 3)}, path)
    with pytest.raises(StateDictMismatchError, match="weights do not fit the model") as caught:
        CLIP.from_pretrained(tmp_path, device="cpu")
    assert str(caught.value).splitlines()[1:] == [
        "  - visual.ln_post.weight (96,)",
        "  + visual.extra (2, 3)",
        "  ! text.ln_final.bias is (5,), the model has (64,)",
    ]


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("logit_bias", "SigLIP"),
        ("text_decoder.resblocks.0.ln_1.weight", "CoCa"),
        ("visual.trunk.stem.0.weight", "ConvNeXt"),
        ("text.transformer.embeddings.word_embeddings.weight", "RoBERTa"),
        ("image_encoder.model.head.proj", "MobileCLIP"),
    ],
)
def test_other_models_are_refused_by_their_keys(
    vit: CLIP, tmp_path: Path, key: str, reason: str
) -> None:
    torch.save(vit.state_dict() | {key: torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(
        UnsupportedCheckpointError,
        match=rf"other\.pt: these weights are not a plain CLIP: .*{reason}",
    ):
        CLIP.from_pretrained(tmp_path / "other.pt", activation="gelu", head_width=64, device="cpu")


@pytest.mark.parametrize(
    ("prefix", "reason"),
    [("visual.", "no text tower"), ("text.", "no image tower")],
)
def test_a_lone_tower_is_refused(vit: CLIP, tmp_path: Path, prefix: str, reason: str) -> None:
    state = vit.state_dict()
    tower = {name: value for name, value in state.items() if name.startswith(prefix)}
    torch.save(tower, tmp_path / "tower.pt")
    with pytest.raises(UnsupportedCheckpointError, match=reason):
        CLIP.from_pretrained(tmp_path / "tower.pt", device="cpu")


def test_other_models_are_refused_by_their_json(vit: CLIP, tmp_path: Path) -> None:
    write_open_clip(vit, tmp_path)
    values = to_open_clip(vit.config)
    values["model_cfg"]["multimodal_cfg"] = {"layers": 12}
    write_json(tmp_path / "open_clip_config.json", values)
    with pytest.raises(UnsupportedCheckpointError, match="not a plain CLIP: multimodal_cfg"):
        CLIP.from_pretrained(tmp_path, device="cpu")
    # Whoever knows better may say so.
    assert_same(CLIP.from_pretrained(tmp_path, config=vit.config, device="cpu"), vit)
