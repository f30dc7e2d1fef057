"""Read a preprocessing from the JSON of open_clip and of transformers, and refuse any but CLIP's.

What a file states and clipkit does otherwise is an error, for it would cost accuracy silently.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, cast

from clipkit.config import OPENAI_MEAN, OPENAI_STD, PreprocessConfig
from clipkit.errors import ConfigError, UnsupportedCheckpointError

_SETTLE = (
    "Pass config= with a CLIPConfig, or with the published name of the architecture, to settle it"
)


def from_preprocess_cfg(
    stated: Mapping[str, Any], default: PreprocessConfig, resolution: tuple[int, int]
) -> PreprocessConfig:
    """Read `preprocess_cfg` of an open_clip file.

    Args:
        stated: the parsed JSON.
        default: gives what it leaves out.
        resolution: (height, width) of the image tower's input, which its size must be.

    Raises:
        ConfigError: for impossible values, and for another size.
        UnsupportedCheckpointError: for colors that are not CLIP's.
    """
    size = stated.get("size")
    if size is not None and _sides(size) != resolution:
        raise ConfigError(
            f"open_clip_config.json contradicts itself: preprocess_cfg has the size {size!r}, and "
            f"vision_cfg the image_size {_shown(resolution)}. {_SETTLE}"
        )
    _refuse_other_colors(stated)
    known = {field.name for field in fields(PreprocessConfig)}
    given = {key: value for key, value in stated.items() if key in known and value is not None}
    return replace(default, **given)


def _refuse_other_colors(stated: Mapping[str, Any]) -> None:
    """Raise `UnsupportedCheckpointError` if `preprocess_cfg` has not RGB, padded with black."""
    mode = stated.get("mode") or "RGB"
    fill = stated.get("fill_color") or 0
    is_black = not any(cast("list[Any]", fill)) if isinstance(fill, list) else fill == 0
    if mode != "RGB" or (stated.get("resize_mode") == "longest" and not is_black):
        raise UnsupportedCheckpointError(
            f"open_clip_config.json: a preprocessing of mode {mode!r} padded with {fill!r}; a "
            "plain CLIP has 'RGB' and 0"
        )


def from_image_processor(
    values: Mapping[str, Any], resolution: tuple[int, int]
) -> PreprocessConfig:
    """Read the image processor of transformers.

    Args:
        values: the parsed JSON of `preprocessor_config.json` or `processor_config.json`.
        resolution: (height, width) of the image tower's input, which its sizes must be.

    Raises:
        ConfigError: for impossible values, and for another size or crop.
        UnsupportedCheckpointError: for steps that are not CLIP's.
    """
    # transformers 5 nests it in `processor_config.json`.
    values = values.get("image_processor") or values
    resample = values.get("resample", 3)  # PIL's numbers
    if resample not in (2, 3):
        raise UnsupportedCheckpointError(
            f"preprocessor_config.json: resample {resample!r} is neither bilinear nor bicubic"
        )
    squash = _is_height_and_width(values.get("size"))
    _refuse_other_steps(values, needs_crop=not squash)
    crops = values.get("do_center_crop") is not False
    for name in ("size", "crop_size") if crops else ("size",):
        stated = values.get(name)
        if stated is not None and _sides(stated) != resolution:
            raise ConfigError(
                f"preprocessor_config.json contradicts config.json: {name} is {stated!r} there, "
                f"and image_size is {_shown(resolution)} here. {_SETTLE}"
            )
    return PreprocessConfig(
        mean=tuple(values.get("image_mean", OPENAI_MEAN)),
        std=tuple(values.get("image_std", OPENAI_STD)),
        interpolation="bicubic" if resample == 3 else "bilinear",
        resize_mode="squash" if squash else "shortest",
    )


def _refuse_other_steps(values: Mapping[str, Any], *, needs_crop: bool) -> None:
    """Raise `UnsupportedCheckpointError` if a processor lacks or alters one of CLIP's steps."""
    steps = ["do_resize", "do_rescale", "do_normalize"]
    if needs_crop:
        steps.append("do_center_crop")
    for key in steps:
        if values.get(key) is False:
            raise UnsupportedCheckpointError(
                f"preprocessor_config.json: {key} is false, but a plain CLIP's is true"
            )
    factor = values.get("rescale_factor", 1 / 255)
    if abs(factor - 1 / 255) > 1e-6:
        raise UnsupportedCheckpointError(
            f"preprocessor_config.json: rescale_factor {factor!r} is not 1/255"
        )


def _is_height_and_width(size: Any) -> bool:
    """Return whether a processor's size names two sides. Images are squashed to such a size."""
    return isinstance(size, list | tuple | dict) and "shortest_edge" not in size


def _sides(size: Any) -> tuple[int, int]:
    """Return (height, width) of a stated size.

    Args:
        size: one integer, a pair, {"shortest_edge": integer}, or {"height": ..., "width": ...}.

    Raises:
        UnsupportedCheckpointError: for any other form.
    """
    sides: Any = size
    if isinstance(size, dict):
        stated = {key: value for key, value in cast("dict[str, Any]", size).items() if value}
        if stated.keys() == {"shortest_edge"}:
            sides = stated["shortest_edge"]
        elif stated.keys() == {"height", "width"}:
            sides = stated["height"], stated["width"]
    if isinstance(sides, int):
        return sides, sides
    if isinstance(sides, list | tuple):
        pair = cast("Sequence[Any]", sides)
        if len(pair) == 2:
            return pair[0], pair[1]
    raise UnsupportedCheckpointError(
        f"a preprocessing to the size {size!r}: a plain CLIP has one edge, or height and width"
    )


def _shown(resolution: tuple[int, int]) -> str:
    """Write a resolution as the files do: one number for a square."""
    height, width = resolution
    return str(height) if height == width else f"{height} x {width}"
