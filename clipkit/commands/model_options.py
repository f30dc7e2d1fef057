"""Read of a command line which model a command works with, without importing what loads it."""

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from clipkit.commands.command import add_device
from clipkit.config import Activation


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """Hold what the options say of the model; each is None where it was not given.

    Attributes:
        model: a published name, a hub id, a folder or a file.
        config: the name of an architecture, or a JSON file of a CLIPConfig.
        activation, head_width: for weights that do not say what they are.
        revision: branch, tag or commit of a hub repository.
        cache_dir: where downloads are kept.
        tokenizer: a file of merges, or a JSON file of added tokens and their ids.
        device: where to put the model.
    """

    model: str | None = None
    config: str | None = None
    activation: Activation | None = None
    head_width: int | None = None
    revision: str | None = None
    cache_dir: Path | None = None
    tokenizer: Path | None = None
    device: str | None = None

    def given(self) -> list[str]:
        """Return the options that were given, as they are written. The device is none of them."""
        names = [field.name for field in fields(self) if getattr(self, field.name) is not None]
        return [f"--{name.replace('_', '-')}" for name in names if name != "device"]


def add_model(parser: argparse.ArgumentParser, default: str = "tiny") -> None:
    """Add the options of `ModelChoice`."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        metavar="NAME",
        help=f"a name from `clipkit models`, a hub id, or a path (default: {default})",
    )
    group.add_argument(
        "--config",
        metavar="NAME",
        help="what weights are that do not say so: the published name that they derive from, or a "
        "JSON file of a CLIPConfig",
    )
    group.add_argument(
        "--activation",
        choices=["gelu", "quick_gelu"],
        help="the same for weights of a shape of their own, with --head-width",
    )
    group.add_argument(
        "--head-width", type=int, metavar="N", help="width of an attention head, nearly always 64"
    )
    group.add_argument(
        "--revision", metavar="NAME", help="branch, tag or commit of a hub repository"
    )
    group.add_argument(
        "--cache-dir", type=Path, metavar="DIR", help="where downloads are kept, and looked for"
    )
    group.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FILE",
        help="instead of the tokenizer beside the weights: a merges.txt, or a JSON object of added "
        "tokens and their ids",
    )
    add_device(parser)


def take_model(options: dict[str, Any]) -> None:
    """Put a `ModelChoice` named `choice` in the place of the values of `add_model`'s options."""
    chosen = {field.name: options.pop(field.name) for field in fields(ModelChoice)}
    options["choice"] = ModelChoice(**chosen)
