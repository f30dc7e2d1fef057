"""Describe a classifier: in one line, in words, and as a table for notebooks."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, cast

from clipkit.classify.calibration import CROSS_VALIDATION, Calibration
from clipkit.config import ResNetConfig, ViTConfig
from clipkit.plurals import number_of, number_of_classes

# What a method may choose by itself, in the order in which it is shown.
CHOICES = ("strength", "C", "alpha", "beta", "lr", "epochs", "batch_size")

_SHOWN = 10  # labels in a table


def choices_in_words(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings that a method chose or was given, by name, for people.

    Example:
        >>> choices_in_words({"method": "anchored", "strength": 0.31622776})
        {'strength': '0.316'}
        >>> choices_in_words({"method": "anchored", "strength": float("inf")})
        {'strength': 'infinite: zero-shot was kept'}
    """
    found: dict[str, str] = {}
    for name in CHOICES:
        value = provenance.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = f"{value:.3g}" if isinstance(value, float) else str(value)
    if found.get("strength") == "inf":
        found["strength"] = "infinite: zero-shot was kept"
    return found


def calibration_in_words(calibration: Calibration) -> str:
    """Return what a classifier is calibrated on, for people."""
    if calibration.source == CROSS_VALIDATION:
        words = f"by cross-validation of {number_of(calibration.images, 'image')}"
    else:
        words = f"on {number_of(calibration.images, 'held-out image')}"
    return words + (", one a class: too careful" if calibration.pessimistic else "")


def describe(
    labels: Sequence[str],
    provenance: Mapping[str, Any],
    vision: ViTConfig | ResNetConfig,
    calibration: Calibration | None = None,
) -> str:
    """Return a classifier in one line: its classes, how its head was made, and its image tower."""
    shown = [f"{label:.40}" for label in labels[:3]]
    shown += ["..."] if len(labels) > len(shown) else []
    made = _method(provenance) + ("" if calibration is None else ", calibrated")
    classes = f"{number_of_classes(len(labels))}: {', '.join(shown)}"
    return f"ImageClassifier({classes}; {made}; {_tower(vision)})"


def describe_as_html(
    labels: Sequence[str],
    provenance: Mapping[str, Any],
    vision: ViTConfig | ResNetConfig,
    calibration: Calibration | None = None,
) -> str:
    """Return the same as a table, with the settings that were chosen."""
    shown = ", ".join(f"{label:.40}" for label in labels[:_SHOWN])
    if len(labels) > _SHOWN:
        shown += f" and {len(labels) - _SHOWN:,} more"
    rows = {
        number_of_classes(len(labels)): shown,
        "method": _method(provenance),
        **choices_in_words(provenance),
        "image tower": _tower(vision),
    }
    if calibration is not None and calibration.images:
        rows["calibrated"] = calibration_in_words(calibration)
    if calibration is not None and calibration.presence is not None:
        rows["several labels"] = f"calibrated on {number_of(calibration.presence.images, 'image')}"
    skipped = provenance.get("skipped")
    if isinstance(skipped, list) and skipped:
        rows["left out"] = (
            f"{number_of(len(cast('list[Any]', skipped)), 'image')} that cannot be read"
        )
    cells = "".join(
        f"<tr><th style='text-align: left'>{escape(name)}</th>"
        f"<td style='text-align: left'>{escape(value)}</td></tr>"
        for name, value in rows.items()
    )
    return f"<table><caption>ImageClassifier</caption><tbody>{cells}</tbody></table>"


def _method(provenance: Mapping[str, Any]) -> str:
    """Return the method, and on how many images. Whatever else the provenance holds is ignored."""
    made = str(provenance.get("method")).replace("_", " ")
    counts = provenance.get("counts")
    if isinstance(counts, list):
        numbers = [count for count in cast("list[Any]", counts) if isinstance(count, int)]
        made += f" on {number_of(sum(numbers), 'image')}"
    if provenance.get("strength") == math.inf:
        made += ", zero-shot kept"
    return made + (", adapted" if "adapted" in provenance else "")


def made_by(provenance: Mapping[str, Any]) -> str:
    """Return how a head was made, in words that follow "a head that is"."""
    if "adapted" in provenance:
        return "adapted to a batch"
    return f"fitted by {provenance.get('method')}"


def _tower(vision: ViTConfig | ResNetConfig) -> str:
    kind = "ViT" if isinstance(vision, ViTConfig) else "ResNet"
    height, width = vision.resolution
    return f"{kind} {height if height == width else f'{height} x {width}'} px"
