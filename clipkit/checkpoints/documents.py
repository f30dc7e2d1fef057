"""Read what the JSON files beside weights state of the model, its tokenizer and preprocessing.

Each layout has one main document: `open_clip_config.json` for open_clip, and `config.json` for
transformers and for clipkit. clipkit's own says so under "format".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from clipkit.checkpoints import infer
from clipkit.checkpoints.vocabulary import TokenizerFiles
from clipkit.config import CLIPConfig
from clipkit.errors import (
    CheckpointNotFoundError,
    ClipkitError,
    ConfigError,
    CorruptCheckpointError,
)
from clipkit.files import read_json

OPEN_CLIP_CONFIG = "open_clip_config.json"
CONFIG = "config.json"
MERGES = "merges.txt"
TOKENIZER = "tokenizer.json"
ADDED_TOKENS = "added_tokens.json"
SETTINGS = ("special_tokens_map.json", "tokenizer_config.json")
# transformers wrote the first name up to its version 4, and writes the second since version 5.
PROCESSORS = ("preprocessor_config.json", "processor_config.json")

# A function that returns the first of the files that exists, in a folder or on the hub. It raises
# `CheckpointNotFoundError` if none does.
Find = Callable[[Sequence[str]], Path]


@dataclass(frozen=True)
class Stated:
    """Hold what the JSON files beside the weights state; None stands for what they leave open.

    Attributes:
        config: the architecture and the preprocessing.
        tokenizer: the files of a tokenizer that belongs to the weights.
        preprocess: a preprocessing that differs from the config's, as plain data.
    """

    config: CLIPConfig | None = None
    tokenizer: TokenizerFiles = TokenizerFiles()
    preprocess: dict[str, Any] | None = None


def read_documents(
    find: Find, document: str, known: CLIPConfig | None, *, ignore_config: bool
) -> Stated:
    """Read a layout's JSON files.

    Args:
        find: gives the files.
        document: the layout's main document. Weights may come without it.
        known: the registry's config, which settles what an open_clip file leaves out.
        ignore_config: leave out the config and the preprocessing, for a caller who knows better.

    Raises:
        ConfigError: if the files state what no CLIP can be.
        UnsupportedCheckpointError: if they describe a model that is not a plain CLIP.
        CorruptCheckpointError: if one is not a JSON object.
    """
    path = find_any(find, (document,))
    if path is None:
        return Stated()
    values = _parse(path)
    in_transformers_layout = document == CONFIG and values.get("format") != "clipkit"
    if in_transformers_layout:
        tokenizer = _find_tokenizer(find, values)
    else:
        tokenizer = _own_tokenizer(find, values)
    if ignore_config:
        return Stated(tokenizer=tokenizer)
    try:
        if document == OPEN_CLIP_CONFIG:
            return Stated(infer.from_open_clip(values, known), tokenizer)
        if in_transformers_layout:
            # Old repositories have no processor.
            processor = find_any(find, PROCESSORS)
            processor_values = None if processor is None else _parse(processor)
            return Stated(infer.from_transformers(values, processor_values), tokenizer)
        config = CLIPConfig.from_dict(values.get("model", {}))
        return Stated(config, tokenizer, _own_preprocess(values))
    except ClipkitError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{document} states what no CLIP can be ({type(error).__name__}: {error})"
        ) from error


def find_any(find: Find, names: Sequence[str]) -> Path | None:
    """Return the first of the files that exists, or None."""
    try:
        return find(names)
    except CheckpointNotFoundError:
        return None


def _own_tokenizer(find: Find, values: dict[str, Any]) -> TokenizerFiles:
    """Return the tokenizer that our own folders name, in the open_clip layout too."""
    if values.get("tokenizer") != MERGES:
        return TokenizerFiles()
    own = {key: values[key] for key in ("added_tokens", "exact_tokens") if key in values}
    return TokenizerFiles(merges=find((MERGES,)), own=own)


def _find_tokenizer(find: Find, values: dict[str, Any]) -> TokenizerFiles:
    """Return the tokenizer beside weights of transformers.

    It lies there without being named, also where it is CLIP's own. Where the vocabulary has the
    size of CLIP's own, there are no added tokens, and their files, which may be large, are not
    fetched.
    """
    text: Any = values.get("text_config_dict") or values.get("text_config") or {}
    sizes = cast("dict[str, Any]", text) if isinstance(text, dict) else {}
    has_own_size = sizes.get("vocab_size", 49408) == 49408
    merges = find_any(find, (MERGES,))
    if has_own_size:
        return TokenizerFiles(merges, find_any(find, (TOKENIZER,)) if merges is None else None)
    settings = [find_any(find, (name,)) for name in SETTINGS]
    return TokenizerFiles(
        merges,
        find_any(find, (TOKENIZER,)),
        find_any(find, (ADDED_TOKENS,)),
        tuple(path for path in settings if path is not None),
    )


def _own_preprocess(values: dict[str, Any]) -> dict[str, Any] | None:
    """Return what clipkit's own layout says of a preprocessing beside the config."""
    preprocess = values.get("preprocess")
    if preprocess is not None and not isinstance(preprocess, dict):
        raise ConfigError(f"{CONFIG}: preprocess must be a JSON object, not {preprocess!r}")
    return cast("dict[str, Any] | None", preprocess)


def _parse(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises `CorruptCheckpointError` if the file holds anything else."""
    return read_json(path, error=CorruptCheckpointError)
