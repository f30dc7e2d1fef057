"""`clipkit models`: list what can be loaded by name."""

import argparse

from clipkit.checkpoints.registry import MODELS
from clipkit.checkpoints.source import resolve
from clipkit.commands.command import DONE, Command
from clipkit.config import CLIPConfig


def _add_no_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def models() -> int:
    """Print a table of the embedded checkpoint and the published ones."""
    print(_row("name", "input", "dim", "license", "source"))
    embedded = resolve("tiny").config
    if embedded is not None:
        print(_model_row("tiny", embedded, "MIT", "embedded in clipkit"))
    for model in MODELS.values():
        print(_model_row(model.name, model.config, model.license, model.hub))
    return DONE


def _model_row(name: str, config: CLIPConfig, license: str, source: str) -> str:
    height, _ = config.vision.resolution
    return _row(name, str(height), str(config.embed_dim), license, source)


def _row(name: str, input_size: str, width: str, license: str, source: str) -> str:
    return f"{name:<34}{input_size:>7}{width:>6}  {license:<14}{source}"


MODELS_COMMAND = Command(
    name="models",
    summary="list the checkpoints that can be loaded by name",
    example="clipkit models",
    add_arguments=_add_no_arguments,
    run=models,
)
