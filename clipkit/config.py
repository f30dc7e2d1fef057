"""What a CLIP model is made of: frozen, validated dataclasses that are saved with the weights.

The weights alone reveal neither the activation nor the number of heads, so both are always stated here and
never guessed. `CLIPConfig.to_dict` and `CLIPConfig.from_dict` are the JSON form.
"""

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from clipkit.errors import ConfigError

Activation = Literal["quick_gelu", "gelu"]
ResizeMode = Literal["shortest", "longest", "squash"]
Interpolation = Literal["bicubic", "bilinear"]

# Pixel statistics that OpenAI normalises with (openai/CLIP, clip.py).
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


def _is_positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _pair(value: Any, name: str) -> tuple[int, int]:
    pair = value if isinstance(value, list | tuple) else (value, value)
    if len(pair) != 2 or not all(_is_positive(side) for side in pair):
        raise ConfigError(
            f"{name} must be a positive integer or a (height, width) pair of them, not {value!r}"
        )
    return pair[0], pair[1]


def check_positive(config: Any, *names: str) -> None:
    """Raise `ConfigError` unless these fields are integers above 0."""
    for name in names:
        value = getattr(config, name)
        if not _is_positive(value):
            raise ConfigError(
                f"{type(config).__name__}.{name} must be a positive integer, not {value!r}"
            )


def check_choice(config: Any, name: str, choices: tuple[Any, ...]) -> None:
    """Raise `ConfigError` unless this field is one of the choices."""
    if getattr(config, name) not in choices:
        raise ConfigError(
            f"{type(config).__name__}.{name} must be one of {choices}, not {getattr(config, name)!r}"
        )


def build(cls: Any, values: dict[str, Any]) -> Any:
    """Make `cls` from a dict, with unknown and missing keys named."""
    names = [f.name for f in fields(cls)]
    if unknown := sorted(set(values) - set(names)):
        raise ConfigError(f"{cls.__name__} has no field {unknown}; it has {names}")
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"{cls.__name__}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """What the two transformers share. `head_width` is of one attention head, and must divide `width`."""

    width: int
    layers: int
    activation: Activation
    head_width: int = 64
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        name, ratio = type(self).__name__, self.mlp_ratio
        check_positive(self, "width", "layers", "head_width")
        check_choice(self, "activation", ("quick_gelu", "gelu"))
        if self.width % self.head_width:
            raise ConfigError(
                f"{name}: width {self.width} is not a multiple of head_width {self.head_width}"
            )
        if not isinstance(ratio, int | float) or not 1 / self.width <= ratio < math.inf:
            raise ConfigError(
                f"{name}.mlp_ratio must be a positive number that leaves the MLPs a width, not {ratio!r}"
            )

    @property
    def heads(self) -> int:
        """Attention heads."""
        return self.width // self.head_width

    @property
    def mlp_width(self) -> int:
        """Hidden width of the MLPs: 1408 x 4.3637 stands for 6144, and 6144 / 1408 must give it too."""
        return int(self.width * self.mlp_ratio + 1e-6)


@dataclass(frozen=True, kw_only=True)
class ViTConfig(TransformerConfig):
    """A vision transformer. `resolution` is (height, width) in pixels and may be given as one integer."""

    resolution: tuple[int, int]
    patch_size: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "resolution", _pair(self.resolution, "ViTConfig.resolution"))
        super().__post_init__()
        check_positive(self, "patch_size")
        if any(side < self.patch_size for side in self.resolution):
            raise ConfigError(
                f"ViTConfig: patch_size {self.patch_size} is larger than resolution {self.resolution}"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches. A rest smaller than a patch is cut off, as a strided convolution does."""
        return self.resolution[0] // self.patch_size, self.resolution[1] // self.patch_size


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """A modified ResNet with attention pooling. `layers` are the bottleneck blocks of its four stages."""

    resolution: tuple[int, int]
    layers: tuple[int, int, int, int]
    width: int
    head_width: int = 64

    def __post_init__(self) -> None:
        object.__setattr__(self, "resolution", _pair(self.resolution, "ResNetConfig.resolution"))
        check_positive(self, "width", "head_width")
        layers = self.layers
        if (
            not isinstance(layers, list | tuple)
            or len(layers) != 4
            or not all(_is_positive(n) for n in layers)
        ):
            raise ConfigError(f"ResNetConfig.layers must be four positive integers, not {layers!r}")
        object.__setattr__(self, "layers", tuple(layers))
        if any(side < 32 for side in self.resolution):
            raise ConfigError(
                f"ResNetConfig.resolution must be at least 32 pixels a side, not {self.resolution}"
            )
        if self.width % 2 or self.pool_width % self.head_width:
            raise ConfigError(
                f"ResNetConfig: width {self.width} must be even, and 32 x it a multiple of head_width {self.head_width}"
            )

    @property
    def pool_width(self) -> int:
        """Channels of the last stage: width x 8 x the bottleneck's expansion of 4."""
        return self.width * 32

    @property
    def heads(self) -> int:
        """Heads of the attention pool."""
        return self.pool_width // self.head_width

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the last feature map: the first of its five halvings rounds up, the others down."""
        return (self.resolution[0] + 1) // 32, (self.resolution[1] + 1) // 32


@dataclass(frozen=True, kw_only=True)
class TextConfig(TransformerConfig):
    """The causal text transformer. The end-of-text token is the highest id of the vocabulary."""

    context_length: int = 77
    vocab_size: int = 49408

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "context_length", "vocab_size")


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """How pictures become tensors; the size comes from the image tower's resolution."""

    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD
    interpolation: Interpolation = "bicubic"
    resize_mode: ResizeMode = "shortest"

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self, name)
            numbers = isinstance(values, list | tuple) and all(
                isinstance(v, int | float) for v in values
            )
            if not numbers or len(values) != 3:
                raise ConfigError(
                    f"PreprocessConfig.{name} must be three numbers, one per channel, not {values!r}"
                )
            object.__setattr__(self, name, tuple(values))
        if min(self.std) <= 0:
            raise ConfigError(f"PreprocessConfig.std must be positive, not {self.std!r}")
        check_choice(self, "interpolation", ("bicubic", "bilinear"))
        check_choice(self, "resize_mode", ("shortest", "longest", "squash"))


@dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """A whole CLIP: both towers, the width of the space they share, and the preprocessing they were trained with."""

    embed_dim: int
    vision: ViTConfig | ResNetConfig
    text: TextConfig
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)

    def __post_init__(self) -> None:
        check_positive(self, "embed_dim")
        parts = {
            "vision": (ViTConfig, ResNetConfig),
            "text": (TextConfig,),
            "preprocess": (PreprocessConfig,),
        }
        for name, kinds in parts.items():
            if not isinstance(getattr(self, name), kinds):
                needed = " or ".join(kind.__name__ for kind in kinds)
                raise ConfigError(
                    f"CLIPConfig.{name} must be a {needed}, not {getattr(self, name)!r}"
                )

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; `vision` gains a `type`, "vit" or "resnet"."""
        values = asdict(self)
        kind = "vit" if isinstance(self.vision, ViTConfig) else "resnet"
        return values | {"vision": {"type": kind} | values["vision"]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "CLIPConfig":
        """Read the JSON form. Raises `ConfigError` that names any unknown, missing or impossible field."""
        if not isinstance(values, dict):
            raise ConfigError(f"CLIPConfig needs a mapping of its fields, not {values!r}")
        parts = {name: dict(part) for name, part in values.items() if isinstance(part, dict)}
        kinds: dict[str, type] = {"text": TextConfig, "preprocess": PreprocessConfig}
        if "vision" in parts:
            kind = parts["vision"].pop("type", None)
            if kind not in ("vit", "resnet"):
                raise ConfigError(f"CLIPConfig.vision.type must be 'vit' or 'resnet', not {kind!r}")
            kinds["vision"] = ViTConfig if kind == "vit" else ResNetConfig
        return build(
            cls,
            values
            | {name: build(kinds[name], part) for name, part in parts.items() if name in kinds},
        )
