"""The registry, the reading of configs and resized positions against open_clip."""

import re
from types import SimpleNamespace

import pytest
import torch

from clipkit.checkpoints import infer, registry
from clipkit.checkpoints.resize import resize_positions
from clipkit.errors import UnsupportedCheckpointError
from tests.helpers.peers import open_clip


@pytest.mark.parametrize("old, new", [(7, 10), (16, 7), (5, 3)])
def test_resized_positions(old: int, new: int) -> None:
    positions = torch.randn(1 + old * old, 12, generator=torch.Generator().manual_seed(0))
    state = {"visual.positional_embedding": positions}
    peer = SimpleNamespace(visual=SimpleNamespace(grid_size=(new, new)))
    open_clip.model.resize_pos_embed(state, peer)
    found = resize_positions(positions, (old, old), (new, new))
    assert torch.equal(found, state["visual.positional_embedding"])


@pytest.mark.parametrize(
    "name", [name for name in registry.MODELS if not name.startswith("TinyCLIP")]
)
def test_registry_agrees_with_open_clip(name: str) -> None:
    row = registry.MODELS[name]
    architecture, _, tag = name.rpartition("/")
    if row.openai:
        architecture, tag = name.replace("/", "-").replace("@336px", "-336"), "openai"
    tag = tag.replace("metaclip_2pt5b", "metaclip_fullcc")
    known = open_clip.get_pretrained_cfg(architecture, tag)
    known = known or open_clip.get_pretrained_cfg(f"{architecture}-quickgelu", tag)
    assert known["hf_hub"] == f"{row.hub}/"
    activation = "quick_gelu" if known.get("quick_gelu") else "gelu"
    assert row.config.text.activation == activation
    values = open_clip.get_model_config(architecture) | {"quick_gelu": activation == "quick_gelu"}
    settings = {key: known[key] for key in ("mean", "std", "interpolation", "resize_mode")}
    assert infer.from_open_clip({"model_cfg": values, "preprocess_cfg": settings}) == row.config


def test_every_config_of_open_clip_is_read_or_refused() -> None:
    plain = re.compile(r"RN\d+(x\d+)?|ViT-(B|L|H|M|S|g|e|bigG)-\d+(-plus)?(-\d+)?(-alt)?")
    for name in open_clip.list_models():
        values = {"model_cfg": open_clip.get_model_config(name)}
        has_layer_scale = name == "ViT-M-16-alt"
        if plain.fullmatch(name.removesuffix("-quickgelu")) and not has_layer_scale:
            config = infer.from_open_clip(values)
            assert (config.text.activation == "quick_gelu") == name.endswith("-quickgelu")
        else:
            with pytest.raises(UnsupportedCheckpointError, match="not a plain CLIP"):
                infer.from_open_clip(values)
