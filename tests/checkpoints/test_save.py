"""Save a model in each layout and load it back."""

import copy
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import clipkit
from clipkit import CLIP, CLIPConfig, Tokenizer
from clipkit.checkpoints.load import load_checkpoint
from clipkit.checkpoints.save import FolderLayout, save_checkpoint
from clipkit.checkpoints.weights import read_weights
from clipkit.errors import ConfigError, CorruptCheckpointError, TokenizerError
from clipkit.tokenizer import default_merges
from tests.helpers.model_files import (
    Write,
    read_files,
    write_json,
    write_open_clip,
    write_open_clip_bin,
)
from tests.helpers.models import assert_same
from tests.helpers.repositories import LAYOUTS


def with_tokenizer(model: CLIP, tokenizer: Tokenizer) -> CLIP:
    """Return the same model with a tokenizer of its own."""
    twin = CLIP(model.config, tokenizer)
    twin.load_state_dict(model.state_dict())
    return twin.eval()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_saved_and_loaded_bit_for_bit(vit: CLIP, tmp_path: Path, layout: FolderLayout) -> None:
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    first, second, *rest = default_merges()[:86]
    model = with_tokenizer(vit, Tokenizer([second, first, *rest], context_length=16))
    model.save_pretrained(str(tmp_path / "deep" / "folder"), layout=layout)
    loaded = CLIP.from_pretrained(tmp_path / "deep" / "folder", device="cpu")
    assert_same(loaded, vit)
    assert loaded.tokenizer == model.tokenizer
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("layout", ["clipkit", "open_clip"])
def test_resnet_saved_and_loaded_bit_for_bit(
    resnet: CLIP, tmp_path: Path, layout: FolderLayout
) -> None:
    resnet.save_pretrained(tmp_path, layout=layout)
    assert_same(CLIP.from_pretrained(tmp_path, device="cpu"), resnet)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_saved_in_half_precision(
    vit: CLIP, small_tokenizer: Tokenizer, tmp_path: Path, layout: FolderLayout
) -> None:
    model = with_tokenizer(vit, small_tokenizer)
    model.save_pretrained(tmp_path, layout=layout, dtype=torch.float16)
    weights = next(tmp_path.glob("*.safetensors"))
    stored = read_weights(weights)
    assert stored.pop("logit_scale").dtype == torch.float32
    assert {value.dtype for value in stored.values()} == {torch.float16}
    expected = copy.deepcopy(vit).half()
    expected.logit_scale = vit.logit_scale
    assert_same(CLIP.from_pretrained(tmp_path, dtype=torch.float16, device="cpu"), expected)
    assert model.dtype == torch.float32


def test_saving_over_the_folder_that_was_loaded(clip: CLIP, tmp_path: Path) -> None:
    """The weights are still mapped from the file that is replaced."""
    clip.save_pretrained(tmp_path)
    model = CLIP.from_pretrained(tmp_path, device="cpu")
    with torch.no_grad():
        model.logit_scale.add_(1)
    model.save_pretrained(str(tmp_path))
    loaded = CLIP.from_pretrained(tmp_path, device="cpu")
    assert_same(loaded, model)
    assert loaded.logit_scale == clip.logit_scale + 1
    assert read_files(tmp_path).keys() == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("write", [write_open_clip, write_open_clip_bin])
def test_saving_where_other_weights_would_be_loaded(
    vit: CLIP, tmp_path: Path, write: Write
) -> None:
    path = write(vit, tmp_path)
    model = CLIP.from_pretrained(tmp_path, device="cpu")
    with pytest.raises(
        ConfigError,
        match=f"holds {path.name}, which load would take instead: save to another folder",
    ):
        model.save_pretrained(str(tmp_path))
    assert read_files(tmp_path).keys() == {path.name, "open_clip_config.json"}
    with torch.no_grad():
        model.logit_scale.add_(1)
    model.save_pretrained(str(tmp_path), layout="open_clip")
    assert_same(CLIP.from_pretrained(tmp_path, device="cpu"), model)


def test_layouts_that_cannot_be(vit: CLIP, resnet: CLIP, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="layout must be 'clipkit', 'open_clip' or 'transformers', not 'openai'"
    ):
        vit.save_pretrained(tmp_path / "x", layout="openai")  # pyright: ignore[reportArgumentType]
    full = CLIP(replace(resnet.config, text=replace(resnet.config.text, vocab_size=49408)))
    with pytest.raises(ConfigError, match="transformers has no CLIP with a ResNet"):
        full.save_pretrained(tmp_path / "x", layout="transformers")
    assert not (tmp_path / "x").exists()


def test_failed_save_leaves_what_was_there(
    vit: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vit.save_pretrained(tmp_path)
    before = read_files(tmp_path)

    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        vit.save_pretrained(tmp_path, dtype=torch.float16)
    assert read_files(tmp_path) == before


def test_transformers_layout_brings_the_merges(tmp_path: Path) -> None:
    """Without them transformers' tokenizer knows no words; clipkit knows its own table."""
    vision = clipkit.ViTConfig(
        resolution=(32, 32), patch_size=32, width=64, layers=1, activation="gelu"
    )
    text = clipkit.TextConfig(width=64, layers=1, activation="gelu")
    model = CLIP(CLIPConfig(embed_dim=16, vision=vision, text=text))
    model.save_pretrained(str(tmp_path), layout="transformers")
    lines = (tmp_path / "merges.txt").read_text("utf-8").splitlines()
    assert lines[0].startswith("#version")
    assert tuple(lines[1:]) == default_merges()
    loaded = CLIP.from_pretrained(tmp_path, device="cpu")
    assert loaded._tokenizer is None
    assert loaded.tokenizer.is_default


def test_own_merges_travel(vit: CLIP, small_tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = with_tokenizer(vit, small_tokenizer)
    model.save_pretrained(tmp_path)
    loaded = CLIP.from_pretrained(tmp_path, device="cpu")
    assert loaded.tokenizer == small_tokenizer
    assert loaded.tokenizer.vocab_size == 600
    tokens = loaded.tokenizer("a photo of a dog")
    torch.testing.assert_close(
        loaded.encode_text(tokens), model.encode_text(tokens), atol=1e-6, rtol=1e-6
    )
    with pytest.raises(
        TokenizerError, match="ids run from 0 to 49407, but this model knows 0 to 599"
    ):
        loaded.encode_text(clipkit.tokenize("a photo of a dog", context_length=16))


def test_merges_that_do_not_fit_the_model(
    vit: CLIP, small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    with_tokenizer(vit, small_tokenizer).save_pretrained(tmp_path)
    (tmp_path / "merges.txt").write_text("\n".join(small_tokenizer.merges[:-1]), "utf-8")
    with pytest.raises(ConfigError, match=r"merges\.txt: it knows the ids 0 to 598, .* 600 tokens"):
        CLIP.from_pretrained(tmp_path, device="cpu")
    (tmp_path / "merges.txt").write_text("no merge", "utf-8")
    with pytest.raises(CorruptCheckpointError, match="merges.txt .*merge 0, 'no merge', must join"):
        CLIP.from_pretrained(tmp_path, device="cpu")


def test_merges_of_a_transformers_repository(
    vit: CLIP, small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """There, their place beside the weights says that they belong together."""
    model = with_tokenizer(vit, small_tokenizer)
    model.save_pretrained(tmp_path, layout="transformers")
    values = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert values.pop("tokenizer") == "merges.txt"
    write_json(tmp_path / "config.json", values)
    assert CLIP.from_pretrained(tmp_path, device="cpu").tokenizer == small_tokenizer


def test_merges_of_a_model_that_lay_there_before_are_not_taken(
    vit: CLIP, small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    with_tokenizer(vit, small_tokenizer).save_pretrained(tmp_path)
    CLIP.from_pretrained("tiny", device="cpu").save_pretrained(tmp_path)
    assert CLIP.from_pretrained(tmp_path, device="cpu").tokenizer.is_default


def test_a_vocabulary_without_its_tokenizer(vit: CLIP, tmp_path: Path) -> None:
    vit.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="600 tokens and the standard tokenizer 49,408"):
        _ = CLIP.from_pretrained(tmp_path, device="cpu").tokenizer


def test_a_failure_halfway_leaves_the_folder_as_it_was(
    vit: CLIP, small_tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New weights beside an old config would be another model."""
    vit.save_pretrained(tmp_path)
    before = read_files(tmp_path)
    write_text = Path.write_text

    def full(path: Path, text: str, encoding: str) -> int:
        if "merges" in path.name:
            raise OSError("No space left on device")
        return write_text(path, text, encoding)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        with_tokenizer(vit, small_tokenizer).save_pretrained(tmp_path, dtype=torch.float16)
    assert read_files(tmp_path) == before


# The preprocessing that a folder states beside its config

PREPROCESS = {"backend": "tensor", "resolution": [48, 64]}


def test_a_preprocessing_travels_as_data(vit: CLIP, tmp_path: Path) -> None:
    save_checkpoint(vit.config, vit.state_dict(), None, tmp_path, preprocess=PREPROCESS)
    loaded = load_checkpoint(tmp_path)
    assert loaded.preprocess == PREPROCESS
    assert loaded.config == vit.config
    alone = load_checkpoint(tmp_path / "model.safetensors")
    assert alone.preprocess == PREPROCESS


def test_a_config_that_overrules_the_folder_overrules_its_preprocessing(
    vit: CLIP, tmp_path: Path
) -> None:
    save_checkpoint(vit.config, vit.state_dict(), None, tmp_path, preprocess=PREPROCESS)
    assert load_checkpoint(tmp_path, config=vit.config).preprocess is None


def test_a_folder_without_a_preprocessing_says_nothing(vit: CLIP, tmp_path: Path) -> None:
    save_checkpoint(vit.config, vit.state_dict(), None, tmp_path)
    assert "preprocess" not in json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert load_checkpoint(tmp_path).preprocess is None


@pytest.mark.parametrize("layout", ["open_clip", "transformers"])
def test_other_layouts_have_no_place_for_a_preprocessing(
    vit: CLIP, small_tokenizer: Tokenizer, tmp_path: Path, layout: FolderLayout
) -> None:
    with pytest.raises(ConfigError, match=f"the {layout} layout cannot hold a preprocessing"):
        save_checkpoint(
            vit.config,
            vit.state_dict(),
            small_tokenizer,
            tmp_path / "saved",
            layout=layout,
            preprocess=PREPROCESS,
        )
    assert not (tmp_path / "saved").exists()
