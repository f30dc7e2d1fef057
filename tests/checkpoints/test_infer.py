"""Read configs from published JSON and from shapes, compare them, and write them back."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from clipkit import (
    CLIP,
    CLIPConfig,
    PreprocessConfig,
    ResNetConfig,
    TextConfig,
    Tokenizer,
    ViTConfig,
)
from clipkit.checkpoints.describe import to_open_clip, to_transformers
from clipkit.checkpoints.infer import differences, from_open_clip, from_shapes, from_transformers
from clipkit.checkpoints.registry import MODELS
from clipkit.errors import ConfigError, CorruptCheckpointError, UnsupportedCheckpointError
from clipkit.models.build import expected_weights

TEXT_CFG = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
VIT_CFG = {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32}
B32: dict[str, Any] = {"embed_dim": 512, "vision_cfg": VIT_CFG, "text_cfg": TEXT_CFG}


def altered(section: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return `B32` with more options in one of its sections, or at its top for ""."""
    values = copy.deepcopy(B32)
    changed = values[section] if section else values
    changed.update(options)
    return {"model_cfg": values}


# open_clip


def test_open_clip_file_of_laion_h14() -> None:
    values = {
        "model_cfg": {
            "embed_dim": 1024,
            "vision_cfg": {
                "image_size": 224,
                "layers": 32,
                "width": 1280,
                "head_width": 80,
                "patch_size": 14,
            },
            "text_cfg": {
                "context_length": 77,
                "vocab_size": 49408,
                "width": 1024,
                "heads": 16,
                "layers": 24,
            },
        },
        "preprocess_cfg": {
            "mean": [0.48145466, 0.4578275, 0.40821073],
            "std": [0.26862954, 0.26130258, 0.27577711],
            "interpolation": "bicubic",
            "resize_mode": "shortest",
            "size": 224,
            "mode": "RGB",
            "fill_color": 0,
        },
    }
    before = copy.deepcopy(values)
    assert from_open_clip(values) == MODELS["ViT-H-14/laion2b_s32b_b79k"].config
    assert values == before


def test_open_clip_file_of_a_resnet() -> None:
    values = {
        "embed_dim": 1024,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 224, "layers": [3, 4, 6, 3], "width": 64, "patch_size": None},
        "text_cfg": TEXT_CFG,
    }
    assert from_open_clip({"model_cfg": values}) == MODELS["RN50"].config
    # open_clip itself keeps bare model configs.
    assert from_open_clip(values) == MODELS["RN50"].config


def test_what_an_open_clip_file_leaves_out() -> None:
    config = from_open_clip({"model_cfg": B32})
    assert config.text.activation == "gelu"
    assert config.preprocess == PreprocessConfig()
    assert isinstance(config.vision, ViTConfig)
    assert config.vision.activation == "gelu"
    assert config.vision.head_width == 64
    row = replace(
        MODELS["ViT-B/32"].config,
        preprocess=PreprocessConfig(mean=(0.5, 0.5, 0.5), resize_mode="squash"),
    )
    assert from_open_clip({"model_cfg": B32}, row) == row
    stated = {
        "model_cfg": B32 | {"quick_gelu": False},
        "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": None},
    }
    config = from_open_clip(stated, row)
    assert config.text.activation == "gelu"  # what the file says, the row does not overrule
    assert config.preprocess == replace(row.preprocess, mean=(0.1, 0.2, 0.3))


def test_open_clip_options_that_change_nothing() -> None:
    plain = from_open_clip({"model_cfg": B32})
    for section, options in {
        "": {
            "custom_text": True,
            "init_logit_scale": 2.0,
            "multimodal_cfg": None,
            "init_logit_bias": None,
        },
        "vision_cfg": {
            "pool_type": "tok",
            "patch_dropout": 0.5,
            "no_ln_pre": False,
            "ls_init_value": None,
        },
        "text_cfg": {
            "pool_type": "argmax",
            "no_causal_mask": False,
            "embed_cls": False,
            "proj_type": "linear",
        },
    }.items():
        assert from_open_clip(altered(section, options)) == plain


@pytest.mark.parametrize(
    ("section", "options", "named"),
    [
        ("", {"init_logit_bias": -10}, "init_logit_bias = -10"),
        ("", {"multimodal_cfg": {"layers": 12}}, "multimodal_cfg = "),
        (
            "vision_cfg",
            {"timm_model_name": "convnext_base", "timm_proj": "linear"},
            "timm_model_name = 'convnext_base'",
        ),
        (
            "vision_cfg",
            {"timm_model_name": "eva02_base_patch16_clip_224"},
            "'eva02_base_patch16_clip_224'",
        ),
        ("vision_cfg", {"timm_model_name": "fastvit_mci1", "timm_pool": "avg"}, "'fastvit_mci1'"),
        ("vision_cfg", {"attentional_pool": True}, "attentional_pool = True"),
        ("vision_cfg", {"no_ln_pre": True}, "no_ln_pre = True"),
        ("vision_cfg", {"pool_type": "avg"}, "pool_type = 'avg'"),
        ("vision_cfg", {"ls_init_value": 1e-5}, "ls_init_value = 1e-05"),
        ("text_cfg", {"hf_model_name": "roberta-base"}, "hf_model_name = 'roberta-base'"),
        ("text_cfg", {"no_causal_mask": True}, "no_causal_mask = True"),
        ("text_cfg", {"pool_type": "last"}, "pool_type = 'last'"),
        ("text_cfg", {"embed_cls": True}, "embed_cls = True"),
        ("text_cfg", {"norm_kwargs": {"eps": 1e-6}}, "norm_kwargs = "),
        ("text_cfg", {"something_new": 3}, "something_new = 3"),
    ],
)
def test_open_clip_options_of_other_models(
    section: str, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(UnsupportedCheckpointError, match=f"not a plain CLIP: .*{named}"):
        from_open_clip(altered(section, options))


def test_open_clip_file_without_a_towers_sizes() -> None:
    siglip = {
        "image_size": 224,
        "timm_model_name": "vit_base_patch16_siglip_224",
        "timm_pool": "map",
    }
    with pytest.raises(
        UnsupportedCheckpointError, match="timm_model_name = 'vit_base_patch16_siglip_224'"
    ):
        from_open_clip({"model_cfg": B32 | {"vision_cfg": siglip}})
    roberta = {"hf_model_name": "roberta-base", "hf_tokenizer_name": "roberta-base", "proj": "mlp"}
    with pytest.raises(UnsupportedCheckpointError, match="hf_model_name = 'roberta-base'"):
        from_open_clip({"model_cfg": B32 | {"text_cfg": roberta}})
    with pytest.raises(ConfigError, match=r"open_clip_config\.json has no 'embed_dim'"):
        from_open_clip({})
    with pytest.raises(ConfigError, match="width of 512 cannot be split into 7 heads"):
        from_open_clip(altered("text_cfg", {"heads": 7}))


def test_another_tokenizer_in_an_open_clip_file() -> None:
    with pytest.raises(
        UnsupportedCheckpointError, match="hf_tokenizer_name = 'someone/other-words'"
    ):
        from_open_clip(altered("text_cfg", {"hf_tokenizer_name": "someone/other-words"}))


# transformers


def test_transformers_files_of_openai_b32() -> None:
    config = {
        "architectures": ["CLIPModel"],
        "initializer_factor": 1.0,
        "logit_scale_init_value": 2.6592,
        "model_type": "clip",
        "projection_dim": 512,
        "text_config": {
            "hidden_act": "quick_gelu",
            "hidden_size": 512,
            "num_attention_heads": 8,
            "eos_token_id": 2,
        },
        "text_config_dict": None,
        "vision_config": {
            "hidden_size": 768,
            "num_attention_heads": 12,
            "patch_size": 32,
            "dropout": 0.0,
        },
        "vision_config_dict": None,
    }
    processor = {
        "crop_size": 224,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": 224,
    }
    assert from_transformers(config, processor) == MODELS["ViT-B/32"].config
    assert from_transformers(config) == MODELS["ViT-B/32"].config


def test_transformers_file_of_laion_h14() -> None:
    config = {
        "model_type": "clip",
        "projection_dim": 1024,
        "text_config": {
            "hidden_act": "gelu",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
        },
        "vision_config": {
            "hidden_act": "gelu",
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_attention_heads": 16,
            "num_hidden_layers": 32,
            "patch_size": 14,
        },
    }
    assert from_transformers(config) == MODELS["ViT-H-14/laion2b_s32b_b79k"].config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "siglip", "vision_config": {}}, "describes a 'siglip' model, not a CLIP"),
        (
            {"model_type": "clip_vision_model", "hidden_size": 768},
            "describes a 'clip_vision_model'",
        ),
        ({"model_type": "bert"}, "describes a 'bert' model"),
        (
            {"architecture": "vit_base_patch16_224", "num_classes": 1000},
            "not a CLIP with both towers",
        ),
        ({"vision_config": {"hidden_act": "relu"}}, "asks for the activation 'relu'"),
        ({"vision_config": {}, "text_config": {"layer_norm_eps": 1e-6}}, "layer_norm_eps 1e-06"),
    ],
)
def test_transformers_files_of_other_models(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedCheckpointError, match=message):
        from_transformers(values)


# both ways


@pytest.mark.parametrize("name", MODELS)
def test_every_published_config_survives_each_layout(name: str) -> None:
    config = MODELS[name].config
    assert from_open_clip(to_open_clip(config)) == config
    if isinstance(config.vision, ViTConfig):
        files = to_transformers(config, Tokenizer([]))
        read = from_transformers(files["config.json"], files["preprocessor_config.json"])
        assert differences(read, config) == []
    assert CLIPConfig.from_dict(config.to_dict()) == config


def test_small_configs_survive_each_layout(
    vit_config: CLIPConfig, resnet_config: CLIPConfig
) -> None:
    for config in (vit_config, resnet_config):
        assert from_open_clip(to_open_clip(config)) == config
    files = to_transformers(vit_config, Tokenizer([]))
    assert from_transformers(files["config.json"], files["preprocessor_config.json"]) == vit_config


# shapes


@pytest.mark.parametrize("name", ["RN50x4", "ViT-L/14@336px", "ViT-B-16-plus-240/laion400m_e31"])
def test_shapes_of_published_models(name: str) -> None:
    config = MODELS[name].config
    assert from_shapes(expected_weights(config), config.text.activation, 64) == config


def test_shapes_of_small_models(vit: CLIP, resnet: CLIP) -> None:
    for model in (vit, resnet):
        read = from_shapes(model.state_dict(), "gelu", 32, text_head_width=32)
        assert differences(replace(read, preprocess=model.config.preprocess), model.config) == []


def test_shapes_that_tell_nothing(vit: CLIP) -> None:
    weights: dict[str, Tensor] = vit.state_dict()
    oblong = weights | {"visual.positional_embedding": torch.zeros(1 + 2 * 3, 96)}
    with pytest.raises(ConfigError, match="6 positions are no square grid.*pass config="):
        from_shapes(oblong, "gelu", 32, 32)
    with pytest.raises(ConfigError, match="width 96 is not a multiple of head_width 64"):
        from_shapes(weights, "gelu", 64)
    del oblong["visual.positional_embedding"]
    with pytest.raises(
        CorruptCheckpointError, match=r"'visual\.positional_embedding' is missing or misshapen"
    ):
        from_shapes(oblong, "gelu", 32, 32)
    with pytest.raises(CorruptCheckpointError, match="incomplete: .*misshapen"):
        from_shapes(weights | {"visual.conv1.weight": torch.zeros(96)}, "gelu", 32, 32)


# differences


def test_differences_name_field_and_values(
    vit_config: CLIPConfig, resnet_config: CLIPConfig
) -> None:
    assert differences(vit_config, vit_config) == []
    other = replace(
        vit_config, embed_dim=64, text=replace(vit_config.text, activation="quick_gelu")
    )
    assert differences(vit_config, other) == [
        "embed_dim: 32 / 64",
        "text.activation: 'gelu' / 'quick_gelu'",
    ]
    assert len(differences(vit_config, resnet_config)) == 1
    assert differences(vit_config, resnet_config)[0].startswith("vision: ViTConfig(")


def test_ratios_that_give_one_width_are_equal() -> None:
    one = TextConfig(width=1408, layers=1, activation="gelu", mlp_ratio=4.3637)
    assert differences(one, replace(one, mlp_ratio=6144 / 1408)) == []
    assert differences(one, replace(one, mlp_ratio=4.0)) == ["mlp_width: 6144 / 5632"]
    # A ResNet has no MLP, and is compared all the same.
    assert isinstance(MODELS["RN50"].config.vision, ResNetConfig)
    assert differences(MODELS["RN50"].config, MODELS["RN50/cc12m"].config) == []
