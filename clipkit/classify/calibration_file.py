"""Turn a calibration into tensors and JSON of a head's file, and back, with every part checked."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from clipkit.classify.calibration import SOURCES, Calibration
from clipkit.classify.presence import Presence
from clipkit.data.views import check_views
from clipkit.errors import ConfigError

PREFIX = "calibration."  # of the tensors' names in the file

_SCORES = ("scores", "confidences")
_PRESENCE = ("slopes", "offsets", "thresholds")


def calibration_parts(calibration: Calibration) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a calibration as tensors, by names that begin with `PREFIX`, and as JSON.

    Raises:
        ConfigError: if it comes from no images, as one that was made by hand.
    """
    tensors = {"scores": calibration.scores, "confidences": calibration.confidences}
    values: dict[str, Any] = {
        "temperature": calibration.temperature,
        "false_alarms": calibration.false_alarms,
        "source": calibration.source,
        "pessimistic": calibration.pessimistic,
    }
    if calibration.views is not None:
        values["views"] = calibration.views
    presence = calibration.presence
    if presence is not None:
        tensors |= {name: getattr(presence, name) for name in _PRESENCE}
        values["several"] = presence.images
    # An empty tensor cannot be told from a missing one by all readers of the format.
    kept = {f"{PREFIX}{name}": tensor for name, tensor in tensors.items() if tensor.numel()}
    if not kept:
        raise ConfigError(
            "the calibration comes from no images, so there is nothing to save: call "
            "classifier.calibrate(images, labels), or set classifier.calibration = None"
        )
    return kept, values


def take_calibration(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the tensors of a calibration out of those of a file, and return them without prefix."""
    names = [name for name in tensors if name.startswith(PREFIX)]
    return {name.removeprefix(PREFIX): tensors.pop(name) for name in names}


def read_calibration(
    tensors: Mapping[str, Tensor], values: dict[str, Any], classes: int
) -> Calibration:
    """Return the calibration that `calibration_parts` took apart.

    Args:
        tensors: without prefix.
        values: the JSON.
        classes: C.

    Raises:
        ValueError, KeyError, TypeError: for what is damaged.
    """
    several = values.get("several")
    scores = [name for name in _SCORES if "scores" in tensors]
    needed = {*scores, *(_PRESENCE if several is not None else ())}
    if not needed or set(tensors) != needed:
        raise ValueError(f"its calibration has {', '.join(sorted(tensors)) or 'no tensors'}")
    count = len(tensors["scores"]) if "scores" in tensors else 0
    for name, tensor in tensors.items():
        length = classes if name in _PRESENCE else count
        if not tensor.is_floating_point() or tensor.shape != (length,) or tensor.isnan().any():
            raise ValueError(f"its calibration's {name} is {tensor.dtype} {tuple(tensor.shape)}")
    presence = None
    if several is not None:
        presence = Presence(**{name: tensors[name] for name in _PRESENCE}, images=int(several))
    if values["source"] not in SOURCES:
        raise ValueError(f"its calibration comes from {values['source']!r:.60}")
    views = values.get("views")
    if views is not None:
        check_views(views)
    sorted_rows = {name: tensors[name].sort().values for name in scores}
    return Calibration(
        temperature=_positive(values, "temperature"),
        false_alarms=_positive(values, "false_alarms"),
        source=values["source"],
        pessimistic=bool(values["pessimistic"]),
        presence=presence,
        views=None if views is None else int(views),
        **sorted_rows,
    )


def _positive(values: dict[str, Any], name: str) -> float:
    value = values[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"its calibration's {name} is {value!r:.60}")
    return float(value)
