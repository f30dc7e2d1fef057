"""Choose what a command works with: a model by its name and options, or a fitted classifier."""

import argparse
from dataclasses import dataclass, fields
from os.path import exists
from pathlib import Path
from typing import Any

import torch

from clipkit import CLIP, CLIPConfig, ImageClassifier, Tokenizer, distributed, read_descriptors
from clipkit.classify.folder import HEAD
from clipkit.commands.command import add_device
from clipkit.commands.display import tell, warn
from clipkit.config import Activation
from clipkit.errors import ConfigError
from clipkit.files import read_json, read_text
from clipkit.prompts import TEMPLATES, ClassNames, Templates


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

    def load(self, dtype: torch.dtype | None = None) -> CLIP:
        """Load the model. It is the embedded one, which stderr is told, if none was named.

        Raises:
            ConfigError: if a revision is asked for where there is none.
        """
        if self.revision is not None and (self.model in (None, "tiny") or exists(self.model)):
            raise ConfigError(
                f"--revision is of hub repositories, and {self.model or 'tiny'} is none: leave it "
                "out"
            )
        if self.model is not None and exists(Path(self.model, HEAD)):
            warn(
                f"{self.model} is a fitted classifier, and only its model is used here: "
                "--classifier takes it with its head"
            )
        if self.model is None and distributed.is_first():
            tell("Using the small embedded model 'tiny'; --model ViT-L/14 takes a published one.")
        model = CLIP.from_pretrained(
            self.model or "tiny",
            device=self.device,
            dtype=dtype,
            config=read_config(self.config),
            activation=self.activation,
            head_width=self.head_width,
            revision=self.revision,
            cache_dir=self.cache_dir,
            # The shortest fits any model; how long its rows are to be is known afterwards.
            tokenizer=read_tokenizer(self.tokenizer, context_length=2),
        )
        tokenizer = read_tokenizer(self.tokenizer, model.context_length)
        if tokenizer is not None:
            model.tokenizer = tokenizer
        return model

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


def read_config(config: str | None) -> str | CLIPConfig | None:
    """Return the name of an architecture as it is, and read a JSON file of a CLIPConfig.

    The file holds the fields of a CLIPConfig, or is the `config.json` of a saved model.

    Raises:
        ConfigError: if the file cannot be read, or is of no CLIPConfig.
    """
    if config is None or not config.endswith(".json"):
        return config
    values = read_json(config, error=ConfigError)
    return CLIPConfig.from_dict(values["model"] if values.get("format") == "clipkit" else values)


def read_tokenizer(file: Path | None, context_length: int) -> Tokenizer | None:
    """Return the tokenizer of a file, with rows of a length, or None without one.

    Raises:
        ConfigError: if the file cannot be read.
        TokenizerError: if it holds no merges, or no tokens.
    """
    if file is None:
        return None
    if file.suffix == ".json":
        tokens = read_json(file, error=ConfigError)
        return Tokenizer(context_length=context_length, added_tokens=tokens)
    return Tokenizer(read_text(file, error=ConfigError).splitlines(), context_length)


def choose_classifier(
    folder: Path | None,
    labels: ClassNames,
    choice: ModelChoice,
    templates: list[str] | None,
    descriptors: Path | None,
) -> ImageClassifier:
    """Load the fitted classifier in `folder`, or make a zero-shot one of the labels.

    Args:
        folder: of a fitted classifier.
        labels: of a zero-shot one.
        choice: of its model.
        templates: texts around its labels.
        descriptors: a file of texts in the place of the templates.

    Raises:
        ConfigError: if a fitted classifier would ignore texts or options of the model, or there are
            texts of two kinds.
        DataError: if the file lacks texts for a label.
    """
    texts = {"--templates": templates, "--descriptors": descriptors}
    given = [name for name, value in texts.items() if value is not None]
    if folder is None and len(given) == 2:
        raise ConfigError(f"{' and '.join(given)} both say what the texts are: leave one out")
    if folder is None and descriptors is not None:
        prompts = read_descriptors(descriptors, labels)  # before the model is loaded
        return ImageClassifier.zero_shot(choice.load(), prompts, templates=None)
    if folder is None:
        return ImageClassifier.zero_shot(choice.load(), labels, read_templates(templates))
    if ignored := [*choice.given(), *given]:
        raise ConfigError(
            f"--classifier brings its own model and texts: leave {' and '.join(ignored)} out"
        )
    return ImageClassifier.load(folder, device=choice.device)


def read_templates(texts: list[str] | None) -> Templates:
    """Return templates, or the name of a prompt set: a single text with no place for the label."""
    if texts is None:
        return TEMPLATES
    if len(texts) == 1 and "{}" not in texts[0]:
        return texts[0]
    return texts
