"""Test what configs refuse and why, what they derive, and that they survive JSON."""

import json
import math
from collections.abc import Callable, Iterable
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

GOOD: dict[type, dict[str, Any]] = {
    ViTConfig: VIT,
    ResNetConfig: RESNET,
    TextConfig: TEXT,
    PreprocessConfig: {},
    CLIPConfig: CLIP,
}

NO_INTEGERS = (0, -1, True, 2.0, "8", None)
NO_PAIRS = (
    *(0, -224, True, 224.0, None, "224"),
    *((224,), (224, 0), (1, 2, 3), (224, 224.0), (True, 224)),
)
NO_LAYERS = ((3, 4, 6), (3, 4, 6, 0), (3, 4, 6, 3.0), (3, 4, 6, True), 12, None, "3463")
NO_RATIOS = (0, -4.0, 1e-4, math.nan, math.inf, -math.inf, 10**400, True, "4", None)
NO_CHANNELS = (
    *((0.5, 0.5), 0.5, None, "abc", (0.5, 0.5, "0.5")),
    *((0.5, bad, 0.5) for bad in (math.nan, math.inf, -math.inf, 10**400, True, None)),
)

# Class, field, impossible values, and what the message says of each.
IMPOSSIBLE: list[tuple[type, str, Iterable[object], str]] = [
    (ViTConfig, "resolution", NO_PAIRS, "must be a positive integer or a .height, width. pair"),
    (ViTConfig, "patch_size", NO_INTEGERS, "must be a positive integer, not"),
    (ViTConfig, "width", NO_INTEGERS, "must be a positive integer, not"),
    (ViTConfig, "layers", NO_INTEGERS, "must be a positive integer, not"),
    (ViTConfig, "head_width", NO_INTEGERS, "must be a positive integer, not"),
    (ViTConfig, "activation", ["relu"], "must be one of .*, not 'relu'"),
    (ViTConfig, "activation", [["gelu"]], "must be one of"),
    (ViTConfig, "head_width", [80], "width 768 is not a multiple of head_width 80"),
    (ViTConfig, "mlp_ratio", NO_RATIOS, "must be a positive number"),
    (ViTConfig, "resolution", [(224, 31)], r"patch_size 32 is larger than resolution \(224, 31\)"),
    (ResNetConfig, "resolution", [(0, 32)], "must be a positive integer"),
    (ResNetConfig, "resolution", [31], r"at least 32 pixels a side, not \(31, 31\)"),
    (ResNetConfig, "layers", NO_LAYERS, "must be four positive integers, not"),
    (ResNetConfig, "width", [0], "must be a positive integer, not 0"),
    (ResNetConfig, "width", [63], "width 63 must be even"),
    (ResNetConfig, "head_width", [1.5], "must be a positive integer, not 1.5"),
    (ResNetConfig, "head_width", [100], "32 x it a multiple of head_width 100"),
    (TextConfig, "context_length", [0], "must be a positive integer, not 0"),
    (TextConfig, "vocab_size", [4.5], "must be a positive integer, not 4.5"),
    (TextConfig, "width", [100], "width 100 is not a multiple of head_width 64"),
    (TextConfig, "mlp_ratio", [-1], "must be a positive number"),
    (TextConfig, "activation", ["silu"], "must be one of"),
    (
        PreprocessConfig,
        "mean",
        NO_CHANNELS,
        "must be three numbers, one per channel and all finite",
    ),
    (PreprocessConfig, "std", NO_CHANNELS, "must be three numbers, one per channel and all finite"),
    (PreprocessConfig, "std", [(0.5, 0.0, 0.5), (1, -1, 1)], "must be positive"),
    (PreprocessConfig, "interpolation", ["nearest"], "must be one of"),
    (PreprocessConfig, "resize_mode", ["crop"], "must be one of"),
    (CLIPConfig, "embed_dim", [0], "must be a positive integer, not 0"),
    (CLIPConfig, "vision", [TextConfig(**TEXT)], "must be a ViTConfig or ResNetConfig"),
    (CLIPConfig, "text", [None], "must be a TextConfig, not None"),
    (CLIPConfig, "preprocess", [{}], "must be a PreprocessConfig, not {}"),
]


@pytest.mark.parametrize(
    "kind, field, value, message",
    [
        (kind, field, value, message)
        for kind, field, values, message in IMPOSSIBLE
        for value in values
    ],
)
def test_impossible_values_are_refused(kind: type, field: str, value: object, message: str) -> None:
    kind(**GOOD[kind])
    with pytest.raises(ConfigError, match=f"^{kind.__name__}.*{message}") as caught:
        kind(**GOOD[kind] | {field: value})
    assert field in str(caught.value)


def vit(**changes: Any) -> ViTConfig:
    return ViTConfig(**VIT | changes)


def resnet(**changes: Any) -> ResNetConfig:
    return ResNetConfig(**RESNET | changes)


def text(**changes: Any) -> TextConfig:
    return TextConfig(**TEXT | changes)


def test_the_error_is_also_a_value_error() -> None:
    assert issubclass(ConfigError, ClipkitError)
    assert issubclass(ConfigError, ValueError)


def test_configs_are_frozen_and_compare_by_value() -> None:
    config = CLIPConfig(**CLIP)
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'embed_dim'"):
        config.__setattr__("embed_dim", 3)
    assert config == CLIPConfig(**CLIP)
    assert hash(config) == hash(CLIPConfig(**CLIP))
    assert replace(config, embed_dim=256) != config


def test_resolutions_become_pairs() -> None:
    assert ViTConfig(**VIT).resolution == (224, 224)
    assert ResNetConfig(**RESNET).resolution == (224, 224)
    assert vit(resolution=[224, 320]).resolution == (224, 320)


@pytest.mark.parametrize(
    "width, ratio, hidden",
    [
        (1408, 4.3637, 6144),
        (1408, 6144 / 1408, 6144),
        (1664, 4.9231, 8192),
        (1664, 8192 / 1664, 8192),
        (768, 4.0, 3072),
        (704, 960 / 704, 960),  # the product falls just short of 960 in float64
        (100, 0.015, 1),
    ],
)
def test_mlp_width_is_rounded_down(width: int, ratio: float, hidden: int) -> None:
    assert vit(width=width, mlp_ratio=ratio, head_width=4).mlp_width == hidden
    assert text(width=width, mlp_ratio=ratio, head_width=4).mlp_width == hidden


def test_grids() -> None:
    assert vit(resolution=(100, 64)).grid == (3, 2)
    assert resnet(resolution=(288, 224)).grid == (9, 7)
    assert resnet(resolution=(62, 63)).grid == (1, 2)  # the stem rounds 63 up
    assert ResNetConfig(**RESNET).pool_width == 2048


def test_heads() -> None:
    assert ViTConfig(**VIT).heads == 12
    assert TextConfig(**TEXT).heads == 8
    assert ResNetConfig(**RESNET).heads == 32


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
            resolution=(32, 64),
            patch_size=4,
            width=20,
            layers=2,
            activation="gelu",
            head_width=5,
            mlp_ratio=1.7,
        ),
        text=TextConfig(
            width=18,
            layers=1,
            activation="quick_gelu",
            context_length=9,
            vocab_size=99,
            head_width=6,
            mlp_ratio=3,
        ),
        preprocess=PreprocessConfig(
            mean=(0, 0.1, 0.2), std=(1, 2, 3), interpolation="bilinear", resize_mode="longest"
        ),
    )
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
