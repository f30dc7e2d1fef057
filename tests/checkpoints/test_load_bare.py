"""Load weights that come without a config: nothing is guessed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import clipkit
from clipkit import CLIP, CLIPConfig
from clipkit.checkpoints import layouts, registry
from clipkit.errors import ConfigError, UnknownModelError
from clipkit.models.build import expected_weights
from tests.helpers.models import assert_same


@pytest.fixture
def bare(vit: CLIP, tmp_path: Path) -> Path:
    torch.save(layouts.from_canonical(vit.state_dict(), "openai"), tmp_path / "bare.pt")
    return tmp_path / "bare.pt"


def test_bare_state_dict_needs_to_be_told(
    bare: Path, vit: CLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = (
        r"bare\.pt comes without a config.* pass config= with the published name .* or "
        "activation= and head_width="
    )
    with pytest.raises(ConfigError, match=message):
        CLIP.from_pretrained(bare, device="cpu")
    with pytest.raises(ConfigError, match=message):
        CLIP.from_pretrained(bare, device="cpu", activation="gelu")
    with pytest.raises(ConfigError, match=message):
        CLIP.from_pretrained(bare, device="cpu", head_width=32)
    assert_same(CLIP.from_pretrained(bare, config=vit.config, device="cpu"), vit)
    row = replace(registry.MODELS["ViT-B/32"], config=vit.config)
    monkeypatch.setitem(registry._BY_SPELLING, "vit-b-32", row)
    for name in ("ViT-B/32", "vit-b/32"):
        assert_same(CLIP.from_pretrained(bare, config=name, device="cpu"), vit)
    with pytest.raises(UnknownModelError, match="'ViT-B/31' is no published model.*ViT-B/32"):
        CLIP.from_pretrained(bare, config="ViT-B/31", device="cpu")
    with pytest.raises(ConfigError, match="vision.head_width: 32 / 48"):
        CLIP.from_pretrained(bare, config=vit.config, head_width=48, device="cpu")


def test_bare_state_dict_by_activation_and_head_width(tmp_path: Path) -> None:
    vision = clipkit.ViTConfig(
        resolution=(32, 32), patch_size=8, width=64, layers=1, activation="gelu", head_width=16
    )
    text = clipkit.TextConfig(
        width=64, layers=1, activation="gelu", context_length=8, vocab_size=520
    )
    model = CLIP(CLIPConfig(embed_dim=16, vision=vision, text=text)).eval()
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    path = tmp_path / "bare.pt"
    loaded = CLIP.from_pretrained(path, activation="gelu", head_width=16, device="cpu")
    assert_same(loaded, model)
    with pytest.raises(ConfigError, match="width 64 is not a multiple of head_width 48"):
        CLIP.from_pretrained(path, activation="gelu", head_width=48, device="cpu")


def test_bare_state_dict_of_the_embedded_model(tmp_path: Path) -> None:
    """Its text heads are narrow, so its name is the only way to say what it is."""
    model = CLIP.from_pretrained("tiny", device="cpu")
    torch.save(model.state_dict(), tmp_path / "tuned.pt")
    assert_same(CLIP.from_pretrained(tmp_path / "tuned.pt", config="tiny", device="cpu"), model)


@pytest.mark.parametrize(
    ("name", "others", "not_one"),
    [
        (
            "ViT-B/32",
            ["ViT-B-32/laion400m_e31", "ViT-B-32/laion2b_s34b_b79k", "ViT-B-32/metaclip_400m"],
            "ViT-B/16",
        ),
        ("RN50", ["RN50/yfcc15m", "RN50/cc12m"], "RN101"),
        ("ViT-g-14/laion2b_s12b_b42k", ["ViT-g-14/laion2b_s34b_b88k"], "ViT-L/14"),
    ],
)
def test_published_names_of_the_same_shape_are_listed(
    tmp_path: Path, name: str, others: list[str], not_one: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = expected_weights(registry.MODELS[name].config)
    # Each takes one number in memory; files may not hold such tensors.
    weights = {key: torch.zeros(()).expand(value.shape) for key, value in shapes.items()}
    (tmp_path / "bare.pt").touch()
    monkeypatch.setattr("clipkit.checkpoints.load.read_weights", lambda path, *, mapped: weights)
    with pytest.raises(ConfigError, match=r"of this shape are (.*)\)") as caught:
        CLIP.from_pretrained(tmp_path / "bare.pt", device="cpu")
    listed = str(caught.value).split("of this shape are ")[1].split(")")[0].split(", ")
    assert {registry.clear_name(registry.MODELS[name]), *others} <= set(listed)
    assert not_one not in listed
