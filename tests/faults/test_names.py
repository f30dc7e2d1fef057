"""Test that a name of an architecture means the activation that its owner gives it."""

import pytest

from clipkit.checkpoints import registry
from clipkit.checkpoints.load import published_config
from clipkit.errors import ConfigError, UnknownModelError

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
