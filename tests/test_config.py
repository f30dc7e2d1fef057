"""Configs: what they refuse and why, what they derive, and that they survive JSON."""

import json
import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from clipkit.checkpoints import registry
from clipkit.config import CLIPConfig, PreprocessConfig, ResNetConfig, TextConfig, ViTConfig
from clipkit.errors import ClipkitError, ConfigError

VIT: dict[str, Any] = {
    "resolution": 224,
    "patch_size": 32,
    "width": 768,
    "layers": 12,
    "activation": "gelu",
}
RESNET: dict[str, Any] = {"resolution": 224, "layers": (3, 4, 6, 3), "width": 64}
TEXT: dict[str, Any] = {"width": 512, "layers": 12, "activation": "gelu"}
CLIP: dict[str, Any] = {"embed_dim": 512, "vision": ViTConfig(**VIT), "text": TextConfig(**TEXT)}

BAD = [
    *[(ViTConfig, VIT, {"resolution": bad}, "ViTConfig.resolution must be a positive integer or a .height, width. pair")
      for bad in (0, -224, True, 224.0, None, "224", (224,), (224, 0), (1, 2, 3), (224, 224.0), (True, 224))],
    *[(ViTConfig, VIT, {name: bad}, f"ViTConfig.{name} must be a positive integer, not")
      for name in ("patch_size", "width", "layers", "head_width") for bad in (0, -1, True, 2.0, "8", None)],
    (ViTConfig, VIT, {"activation": "relu"}, r"ViTConfig.activation must be one of .*, not 'relu'"),
    (ViTConfig, VIT, {"activation": ["gelu"]}, r"ViTConfig.activation must be one of"),
    (ViTConfig, VIT, {"head_width": 80}, "ViTConfig: width 768 is not a multiple of head_width 80"),
    *[(ViTConfig, VIT, {"mlp_ratio": bad}, "ViTConfig.mlp_ratio must be a positive number")
      for bad in (0, -4.0, 1e-4, math.nan, math.inf, "4", None)],
    (ViTConfig, VIT, {"resolution": (224, 31)}, r"patch_size 32 is larger than resolution \(224, 31\)"),
    (ResNetConfig, RESNET, {"resolution": (0, 32)}, "ResNetConfig.resolution must be a positive integer"),
    (ResNetConfig, RESNET, {"resolution": 31}, r"at least 32 pixels a side, not \(31, 31\)"),
    *[(ResNetConfig, RESNET, {"layers": bad}, "ResNetConfig.layers must be four positive integers, not")
      for bad in ((3, 4, 6), (3, 4, 6, 0), (3, 4, 6, 3.0), (3, 4, 6, True), 12, None, "3463")],
    (ResNetConfig, RESNET, {"width": 0}, "ResNetConfig.width must be a positive integer, not 0"),
    (ResNetConfig, RESNET, {"head_width": 1.5}, "ResNetConfig.head_width must be a positive integer, not 1.5"),
    (ResNetConfig, RESNET, {"width": 63, "head_width": 32}, "width 63 must be even"),
    (ResNetConfig, RESNET, {"head_width": 100}, "32 x it a multiple of head_width 100"),
    (TextConfig, TEXT, {"context_length": 0}, "TextConfig.context_length must be a positive integer, not 0"),
    (TextConfig, TEXT, {"vocab_size": 4.5}, "TextConfig.vocab_size must be a positive integer, not 4.5"),
    (TextConfig, TEXT, {"width": 100}, "TextConfig: width 100 is not a multiple of head_width 64"),
    (TextConfig, TEXT, {"mlp_ratio": -1}, "TextConfig.mlp_ratio must be a positive number"),
    (TextConfig, TEXT, {"activation": "silu"}, "TextConfig.activation must be one of"),
    *[(PreprocessConfig, {}, {name: bad}, f"PreprocessConfig.{name} must be three numbers")
      for name in ("mean", "std") for bad in ((0.5, 0.5), 0.5, None, "abc", (0.5, 0.5, "0.5"))],
    (PreprocessConfig, {}, {"std": (0.5, 0.0, 0.5)}, "PreprocessConfig.std must be positive"),
    (PreprocessConfig, {}, {"interpolation": "nearest"}, "PreprocessConfig.interpolation must be one of"),
    (PreprocessConfig, {}, {"resize_mode": "crop"}, "PreprocessConfig.resize_mode must be one of"),
    (CLIPConfig, CLIP, {"embed_dim": 0}, "CLIPConfig.embed_dim must be a positive integer, not 0"),
    (CLIPConfig, CLIP, {"vision": TextConfig(**TEXT)}, "CLIPConfig.vision must be a ViTConfig or ResNetConfig"),
    (CLIPConfig, CLIP, {"text": None}, "CLIPConfig.text must be a TextConfig, not None"),
    (CLIPConfig, CLIP, {"preprocess": {}}, "CLIPConfig.preprocess must be a PreprocessConfig, not {}"),
]  # fmt: skip


@pytest.mark.parametrize("kind, good, bad, message", BAD)
def test_impossible_values_are_refused(
    kind: Callable[..., Any], good: dict[str, Any], bad: dict[str, Any], message: str
) -> None:
    kind(**good)
    with pytest.raises(ConfigError, match=message):
        kind(**{**good, **bad})


def test_the_error_is_also_a_value_error() -> None:
    assert issubclass(ConfigError, ClipkitError) and issubclass(ConfigError, ValueError)


def test_configs_are_frozen_and_compare_by_value() -> None:
    config = CLIPConfig(**CLIP)
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'embed_dim'"):
        config.embed_dim = 3  # pyright: ignore[reportAttributeAccessIssue]
    assert config == CLIPConfig(**CLIP) and hash(config) == hash(CLIPConfig(**CLIP))
    assert replace(config, embed_dim=256) != config


def test_resolutions_become_pairs() -> None:
    assert ViTConfig(**VIT).resolution == ResNetConfig(**RESNET).resolution == (224, 224)
    assert ViTConfig(**VIT | {"resolution": [224, 320]}).resolution == (224, 320)


@pytest.mark.parametrize("width, ratio, hidden", [(1408, 4.3637, 6144), (1408, 6144 / 1408, 6144),
                                                  (1664, 4.9231, 8192), (1664, 8192 / 1664, 8192), (768, 4.0, 3072),
                                                  (704, 960 / 704, 960), (100, 0.015, 1)])  # fmt: skip
def test_mlp_width_is_rounded_down(width: int, ratio: float, hidden: int) -> None:
    """704 x (960 / 704) falls just short of 960 in float64."""
    for config in (ViTConfig(**VIT | {"width": width, "mlp_ratio": ratio, "head_width": 4}),
                   TextConfig(**TEXT | {"width": width, "mlp_ratio": ratio, "head_width": 4})):  # fmt: skip
        assert config.mlp_width == hidden


def test_grids() -> None:
    assert ViTConfig(**VIT | {"resolution": (100, 64)}).grid == (3, 2)
    assert ResNetConfig(**RESNET | {"resolution": (288, 224)}).grid == (9, 7)
    assert ResNetConfig(**RESNET | {"resolution": (62, 63)}).grid == (1, 2)  # the stem rounds 63 up
    assert ResNetConfig(**RESNET).pool_width == 2048


def test_heads() -> None:
    assert (ViTConfig(**VIT).heads, TextConfig(**TEXT).heads, ResNetConfig(**RESNET).heads) == (
        12,
        8,
        32,
    )


@pytest.mark.parametrize("name", registry.MODELS)
def test_published_configs_survive_json(name: str) -> None:
    config = registry.MODELS[name].config
    values = json.loads(json.dumps(config.to_dict()))
    assert CLIPConfig.from_dict(values) == config
    assert values["vision"]["type"] == (
        "resnet" if isinstance(config.vision, ResNetConfig) else "vit"
    )


def test_every_field_survives_json() -> None:
    config = CLIPConfig(
        embed_dim=7,
        vision=ViTConfig(
            resolution=(32, 64), patch_size=4, width=20, layers=2, activation="gelu", head_width=5, mlp_ratio=1.7
        ),
        text=TextConfig(
            width=18, layers=1, activation="quick_gelu", context_length=9, vocab_size=99, head_width=6, mlp_ratio=3
        ),
        preprocess=PreprocessConfig(
            mean=(0, 0.1, 0.2), std=(1, 2, 3), interpolation="bilinear", resize_mode="longest"
        ),
    )  # fmt: skip
    assert CLIPConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_reading_a_dict_leaves_it_alone_and_fills_in_defaults() -> None:
    values = CLIPConfig(**CLIP).to_dict()
    del values["preprocess"], values["vision"]["head_width"], values["text"]["context_length"]
    before = json.dumps(values)
    assert CLIPConfig.from_dict(values) == CLIPConfig(**CLIP)
    assert json.dumps(values) == before


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda v: "a string", "CLIPConfig needs a mapping of its fields, not 'a string'"),
        (
            lambda v: v | {"dim": 3},
            r"CLIPConfig has no field \['dim'\]; it has \['embed_dim', 'vision'",
        ),
        (
            lambda v: {k: v[k] for k in v if k != "embed_dim"},
            "CLIPConfig: .*missing .* 'embed_dim'",
        ),
        (lambda v: {k: v[k] for k in v if k != "vision"}, "CLIPConfig: .*missing .* 'vision'"),
        (
            lambda v: v | {"vision": None},
            "CLIPConfig.vision must be a ViTConfig or ResNetConfig, not None",
        ),
        (
            lambda v: v | {"vision": v["vision"] | {"type": "convnext"}},
            "must be 'vit' or 'resnet', not 'convnext'",
        ),
        (lambda v: v | {"vision": VIT}, "must be 'vit' or 'resnet', not None"),
        (
            lambda v: v | {"vision": v["vision"] | {"heads": 12}},
            r"ViTConfig has no field \['heads'\]",
        ),
        (
            lambda v: v | {"text": {"width": 512}},
            "TextConfig: .*missing .* 'layers' and 'activation'",
        ),
        (
            lambda v: v | {"text": v["text"] | {"layers": 0}},
            "TextConfig.layers must be a positive integer, not 0",
        ),
        (
            lambda v: v | {"text": "12 layers"},
            "CLIPConfig.text must be a TextConfig, not '12 layers'",
        ),
        (lambda v: v | {"preprocess": {"size": 224}}, r"PreprocessConfig has no field \['size'\]"),
    ],
)
def test_bad_dicts_are_refused(change: Callable[[dict[str, Any]], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CLIPConfig.from_dict(change(CLIPConfig(**CLIP).to_dict()))
