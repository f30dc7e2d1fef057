"""The configuration of a CLIP model: frozen, validated dataclasses that are saved with the weights.

Weights alone reveal neither the activation nor the number of heads. So a configuration always
states both, and nothing guesses them. `CLIPConfig.to_dict` gives the JSON form, and
`CLIPConfig.from_dict` reads it.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from clipkit.errors import ConfigError
from clipkit.fields import (
    MAX_SIZE,
    as_sequence,
    build,
    check_choice,
    check_sizes,
    is_number,
    is_positive,
    read_channels,
    read_sides,
)

Activation = Literal["quick_gelu", "gelu"]
ResizeMode = Literal["shortest", "longest", "squash"]
Interpolation = Literal["bicubic", "bilinear"]

# The pixel statistics with which OpenAI normalizes images (openai/CLIP, clip.py).
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

RESNET_DOWNSAMPLING = 32  # five halvings, from pixels to the last feature map

# Bounds that no CLIP comes near, so that a damaged file is refused before anything is built.
MAX_SIDE = 1 << 16  # pixels
MAX_LAYERS = 1000


def _resolution(config: "ViTConfig | ResNetConfig") -> tuple[int, int]:
    """Return (height, width) of an image tower, where one integer stands for both."""
    return read_sides(config.resolution, f"{type(config).__name__}.resolution", MAX_SIDE)


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Hold what the two transformers of a CLIP have in common.

    Attributes:
        width: channels of every token.
        layers: residual attention blocks.
        activation: of the MLPs. Weights do not tell it.
        head_width: channels of one attention head. It must divide `width`; weights do not tell it.
        mlp_ratio: hidden width of the MLPs, as a multiple of `width`.

    Raises:
        ConfigError: if a value is impossible.
    """

    width: int
    layers: int
    activation: Activation
    head_width: int = 64
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        check_sizes(self, "width", "head_width")
        check_sizes(self, "layers", largest=MAX_LAYERS)
        check_choice(self, "activation", ("quick_gelu", "gelu"))
        self._check_head_width()
        self._check_mlp_ratio()

    def _check_head_width(self) -> None:
        if self.width % self.head_width:
            raise ConfigError(
                f"{type(self).__name__}: width {self.width} is not a multiple of head_width "
                f"{self.head_width}"
            )

    def _check_mlp_ratio(self) -> None:
        if not is_number(self.mlp_ratio) or self.mlp_ratio < 1 / self.width:
            raise ConfigError(
                f"{type(self).__name__}.mlp_ratio must be a positive number that leaves the MLPs "
                f"a width, not {self.mlp_ratio!r}"
            )
        if self.mlp_ratio * self.width > MAX_SIZE:
            raise ConfigError(
                f"{type(self).__name__}.mlp_ratio {self.mlp_ratio!r} gives the MLPs a width above "
                f"{MAX_SIZE:,}"
            )

    @property
    def heads(self) -> int:
        """Return the number of attention heads."""
        return self.width // self.head_width

    @property
    def mlp_width(self) -> int:
        """Return the hidden width of the MLPs.

        The small addend makes up for rounding: 1408 x 4.3637 and 1408 x (6144 / 1408) both mean
        6144.
        """
        return int(self.width * self.mlp_ratio + 1e-6)


@dataclass(frozen=True, kw_only=True)
class ViTConfig(TransformerConfig):
    """Describe a vision transformer.

    Attributes:
        resolution: (height, width) in pixels. One integer may be given for both.
        patch_size: side of a square patch, in pixels.

    Raises:
        ConfigError: if a value is impossible.

    Example:
        >>> ViTConfig(resolution=224, patch_size=32, width=768, layers=12, activation="gelu").grid
        (7, 7)
    """

    resolution: tuple[int, int]
    patch_size: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "resolution", _resolution(self))
        super().__post_init__()
        check_sizes(self, "patch_size")
        if min(self.resolution) < self.patch_size:
            raise ConfigError(
                f"ViTConfig: patch_size {self.patch_size} is larger than resolution "
                f"{self.resolution}"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Return the rows and columns of patches.

        Pixels at the edge that do not fill a patch are cut off, as a strided convolution does.
        """
        height, width = self.resolution
        return height // self.patch_size, width // self.patch_size


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """Describe OpenAI's modified ResNet with attention pooling.

    Attributes:
        resolution: (height, width) in pixels, each at least 32. One integer may be given for both.
        layers: the numbers of bottleneck blocks of the four stages.
        width: channels after the stem.
        head_width: channels of one head of the attention pool.

    Raises:
        ConfigError: if a value is impossible.

    Example:
        >>> ResNetConfig(resolution=224, layers=(3, 4, 6, 3), width=64).grid
        (7, 7)
    """

    resolution: tuple[int, int]
    layers: tuple[int, int, int, int]
    width: int
    head_width: int = 64

    def __post_init__(self) -> None:
        object.__setattr__(self, "resolution", _resolution(self))
        check_sizes(self, "width", "head_width")
        self._check_layers()
        object.__setattr__(self, "layers", tuple(self.layers))
        if min(self.resolution) < RESNET_DOWNSAMPLING:
            raise ConfigError(
                f"ResNetConfig.resolution must be at least {RESNET_DOWNSAMPLING} pixels a side, "
                f"not {self.resolution}"
            )
        if self.width % 2 or self.pool_width % self.head_width:
            raise ConfigError(
                f"ResNetConfig: width {self.width} must be even, and 32 x it a multiple of "
                f"head_width {self.head_width}"
            )

    def _check_layers(self) -> None:
        layers = as_sequence(self.layers)
        if layers is None or len(layers) != 4 or not all(is_positive(n) for n in layers):
            raise ConfigError(
                f"ResNetConfig.layers must be four positive integers, not {self.layers!r}"
            )
        if sum(self.layers) > MAX_LAYERS:
            raise ConfigError(
                f"ResNetConfig.layers must be at most {MAX_LAYERS:,} in all, not {self.layers!r}"
            )

    @property
    def pool_width(self) -> int:
        """Return the channels of the last stage: 8 x width, times the bottleneck's expansion."""
        return self.width * 8 * 4

    @property
    def heads(self) -> int:
        """Return the number of heads of the attention pool."""
        return self.pool_width // self.head_width

    @property
    def grid(self) -> tuple[int, int]:
        """Return the rows and columns of the last feature map.

        The first of the five halvings rounds up, and the others round down.
        """
        height, width = self.resolution
        return (height + 1) // RESNET_DOWNSAMPLING, (width + 1) // RESNET_DOWNSAMPLING


@dataclass(frozen=True, kw_only=True)
class TextConfig(TransformerConfig):
    """Describe the causal text transformer.

    Attributes:
        context_length: tokens of a row, start and end of text included.
        vocab_size: number of token ids.
        end_of_text: the id at which the text feature is read; None for the highest id of each row,
            which is OpenAI's rule. With tokens that were added behind it, it is not the highest.

    Raises:
        ConfigError: if a value is impossible.

    Example:
        >>> TextConfig(width=512, layers=12, activation="gelu").context_length
        77
    """

    context_length: int = 77
    vocab_size: int = 49408
    end_of_text: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "context_length", "vocab_size")
        end = self.end_of_text
        if end is None:
            return
        if not isinstance(end, int) or isinstance(end, bool) or not 0 <= end < self.vocab_size:
            raise ConfigError(
                "TextConfig.end_of_text must be a token id below vocab_size, which is "
                f"{self.vocab_size}, or None for the highest id of each row; not {end!r}"
            )


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """Describe how images become tensors. The image tower's resolution gives the size.

    Attributes:
        mean, std: of red, green and blue, where the pixels go from 0 to 1.
        interpolation: the filter that resizes.
        resize_mode: "shortest" fits the shorter side and crops the longer one, "longest" fits the
            longer side and pads the shorter one, "squash" ignores the aspect ratio.

    Raises:
        ConfigError: if a value is impossible.

    Example:
        >>> PreprocessConfig(resize_mode="squash").interpolation
        'bicubic'
    """

    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD
    interpolation: Interpolation = "bicubic"
    resize_mode: ResizeMode = "shortest"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", read_channels(self.mean, "PreprocessConfig.mean"))
        object.__setattr__(self, "std", read_channels(self.std, "PreprocessConfig.std"))
        if min(self.std) <= 0:
            raise ConfigError(f"PreprocessConfig.std must be positive, not {self.std!r}")
        check_choice(self, "interpolation", ("bicubic", "bilinear"))
        check_choice(self, "resize_mode", ("shortest", "longest", "squash"))


# The classes that each part of a CLIPConfig may have.
_PARTS: dict[str, tuple[type, ...]] = {
    "vision": (ViTConfig, ResNetConfig),
    "text": (TextConfig,),
    "preprocess": (PreprocessConfig,),
}


@dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """Describe a whole CLIP.

    Attributes:
        embed_dim: width of the space that images and texts share.
        vision, text: the two towers.
        preprocess: how the images were prepared that the model was trained on.

    Raises:
        ConfigError: if a value is impossible.

    Example:
        >>> config = CLIPConfig(
        ...     embed_dim=512,
        ...     vision=ViTConfig(
        ...         resolution=224, patch_size=32, width=768, layers=12, activation="gelu"
        ...     ),
        ...     text=TextConfig(width=512, layers=12, activation="gelu"),
        ... )
        >>> CLIPConfig.from_dict(config.to_dict()) == config
        True
    """

    embed_dim: int
    vision: ViTConfig | ResNetConfig
    text: TextConfig
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)

    def __post_init__(self) -> None:
        check_sizes(self, "embed_dim")
        for name, kinds in _PARTS.items():
            part = getattr(self, name)
            if not isinstance(part, kinds):
                needed = " or ".join(kind.__name__ for kind in kinds)
                raise ConfigError(f"CLIPConfig.{name} must be a {needed}, not {part!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form. `vision` gains a `type`, "vit" or "resnet"."""
        values = asdict(self)
        if self.text.end_of_text is None:  # as version 0.1.0 wrote it, which knew no other
            del values["text"]["end_of_text"]
        kind = "vit" if isinstance(self.vision, ViTConfig) else "resnet"
        return values | {"vision": {"type": kind} | values["vision"]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "CLIPConfig":
        """Read the JSON form, and leave `values` as they are.

        Raises:
            ConfigError: if a field is unknown, missing or impossible. The message names it.
        """
        if not isinstance(values, dict):
            raise ConfigError(f"CLIPConfig needs a mapping of its fields, not {values!r}")
        built = dict(values)
        # What is no dict is left to the constructor, which says what it should be.
        if isinstance(values.get("vision"), dict):
            built["vision"] = _build_vision(values["vision"])
        if isinstance(values.get("text"), dict):
            built["text"] = build(TextConfig, values["text"])
        if isinstance(values.get("preprocess"), dict):
            built["preprocess"] = build(PreprocessConfig, values["preprocess"])
        return build(cls, built)


def _build_vision(values: dict[str, Any]) -> ViTConfig | ResNetConfig:
    """Make the config of an image tower from its JSON form."""
    kind = values.get("type")
    own = {name: value for name, value in values.items() if name != "type"}
    if kind == "vit":
        return build(ViTConfig, own)
    if kind == "resnet":
        return build(ResNetConfig, own)
    raise ConfigError(f"CLIPConfig.vision.type must be 'vit' or 'resnet', not {kind!r}")
