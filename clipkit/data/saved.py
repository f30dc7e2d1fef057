"""Write a model's preprocessing as plain data, and read it back.

A `Preprocess` is data. Any other function is code, which no file of ours holds: a marker takes its
place, and whoever loads the file must bring the function along.
"""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, TypeGuard

from torch import Tensor

from clipkit.config import CLIPConfig, PreprocessConfig
from clipkit.data.preprocess import Preprocess
from clipkit.errors import ConfigError

LONGEST_REPR = 300  # characters of a marker: enough to know a function again


def describe_preprocess(
    preprocess: Callable[[Any], Tensor], config: CLIPConfig
) -> dict[str, Any] | None:
    """Return a preprocessing as JSON-able data; None if it is the one that the config means.

    The data are the fields of a `Preprocess`, without the resolution where that is the model's, so
    that it may change; or a marker for any other function.

    Args:
        preprocess: any function of an image.
        config: the model's.
    """
    if not _is_data(preprocess):
        return {"type": "other", "repr": repr(preprocess)[:LONGEST_REPR]}
    if preprocess == Preprocess(config.vision.resolution, config.preprocess):
        return None
    values: dict[str, Any] = {"type": "Preprocess", **asdict(preprocess)}
    if preprocess.resolution == config.vision.resolution:
        del values["resolution"]
    if not preprocess.reduced_jpegs:  # which version 0.1.0 does not know
        del values["reduced_jpegs"]
    return values


def restore_preprocess(values: dict[str, Any] | None, config: CLIPConfig) -> Preprocess:
    """Return the preprocessing that `describe_preprocess` described.

    Args:
        values: the data; None stands for the one that the config means.
        config: the model's.

    Raises:
        ConfigError: for a marker, and for data that nothing of ours wrote.
    """
    if values is None:
        return Preprocess(config.vision.resolution, config.preprocess)
    fields: dict[str, Any] = {"resolution": config.vision.resolution, **values}
    kind = fields.pop("type", None)
    if kind == "other":
        raise ConfigError(
            "the model was saved with a preprocessing that cannot be written as data, "
            f"{fields.get('repr')}: pass it as preprocess="
        )
    if kind != "Preprocess":
        raise ConfigError(f"the type of a saved preprocessing must be 'Preprocess', not {kind!r}")
    try:
        fields["config"] = PreprocessConfig(**fields["config"])
        return Preprocess(**fields)
    except (KeyError, TypeError) as error:
        raise ConfigError(f"a saved preprocessing cannot be read: {error}") from error


def absorb_preprocess(config: CLIPConfig, preprocess: Callable[[Any], Tensor]) -> CLIPConfig:
    """Return a config that means this preprocessing, if a config can; else the config as it is.

    Args:
        config: the model's.
        preprocess: any function of an image.
    """
    if not _is_data(preprocess):
        return config
    absorbed = replace(config, preprocess=preprocess.config)
    means_all_of_it = describe_preprocess(preprocess, absorbed) is None
    return absorbed if means_all_of_it else config


def _is_data(preprocess: object) -> TypeGuard[Preprocess]:
    """Return whether this is a `Preprocess`; a subclass may do anything."""
    return type(preprocess) is Preprocess
