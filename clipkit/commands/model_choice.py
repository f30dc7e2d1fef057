"""Load what a command works with: a model by its name and options, or a fitted classifier."""

from os.path import exists
from pathlib import Path
from typing import Any

import torch

from clipkit import CLIP, CLIPConfig, ImageClassifier, Tokenizer, distributed, read_descriptors
from clipkit.checkpoints.load import load_checkpoint
from clipkit.classify.folder import HEAD
from clipkit.commands.display import tell, warn
from clipkit.commands.inputs import read_templates
from clipkit.commands.model_options import ModelChoice
from clipkit.errors import ConfigError
from clipkit.files import read_json, read_text
from clipkit.prompts import ClassNames
from clipkit.search.text_tower import TextTower, text_tower_of


def load_model(choice: ModelChoice, dtype: torch.dtype | None = None) -> CLIP:
    """Load the model. It is the embedded one, which stderr is told, if none was named.

    Raises:
        ConfigError: if a revision is asked for where there is none.
    """
    name, options = _source_of(choice)
    if choice.model is not None and exists(Path(choice.model, HEAD)):
        warn(
            f"{choice.model} is a fitted classifier, and only its model is used here: "
            "--classifier takes it with its head"
        )
    if choice.model is None and distributed.is_first():
        tell("Using the small embedded model 'tiny'; --model ViT-L/14 takes a published one.")
    model = CLIP.from_pretrained(name, **options, device=choice.device, dtype=dtype)
    tokenizer = read_tokenizer(choice.tokenizer, model.context_length)
    if tokenizer is not None:
        model.tokenizer = tokenizer
    return model


def load_text_tower(choice: ModelChoice) -> TextTower:
    """Load the text tower alone of the model that was chosen, which must have a name.

    Raises:
        ConfigError: as `load_model`.
    """
    name, options = _source_of(choice)
    checkpoint = load_checkpoint(name, **options)
    tokenizer = read_tokenizer(choice.tokenizer, checkpoint.config.text.context_length)
    return text_tower_of(checkpoint, tokenizer, choice.device)


def _source_of(choice: ModelChoice) -> tuple[str, dict[str, Any]]:
    """Return the name of the model that was chosen, and the options of `load_checkpoint`.

    Raises:
        ConfigError: if a revision is asked for where there is none.
    """
    name = choice.model or "tiny"
    if choice.revision is not None and (name == "tiny" or exists(name)):
        raise ConfigError(f"--revision is of hub repositories, and {name} is none: leave it out")
    return name, {
        "config": read_config(choice.config),
        "activation": choice.activation,
        "head_width": choice.head_width,
        "revision": choice.revision,
        "cache_dir": choice.cache_dir,
        # The shortest fits any model; how long its rows are to be is known afterwards.
        "tokenizer": read_tokenizer(choice.tokenizer, context_length=2),
    }


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
        return ImageClassifier.zero_shot(load_model(choice), prompts, templates=None)
    if folder is None:
        return ImageClassifier.zero_shot(load_model(choice), labels, read_templates(templates))
    if ignored := [*choice.given(), *given]:
        raise ConfigError(
            f"--classifier brings its own model and texts: leave {' and '.join(ignored)} out"
        )
    return ImageClassifier.load(folder, device=choice.device)
