"""Read the tokenizer beside weights, and check that a tokenizer and a model belong together."""

import functools
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from clipkit.byte_pairs import byte_ids
from clipkit.config import TextConfig
from clipkit.errors import ConfigError, CorruptCheckpointError, TokenizerError
from clipkit.files import read_json, read_text
from clipkit.tokenizer import Tokenizer
from clipkit.words import END, START

_LOG = logging.getLogger("clipkit")

# What transformers' JSON files call special tokens, in the order in which it adds unknown ones.
_SPECIAL = (
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
    "additional_special_tokens",
    "extra_special_tokens",
)


@dataclass(frozen=True)
class TokenizerFiles:
    """Hold where the tokenizer beside weights lies; None stands for a file that is not there.

    Attributes:
        merges: `merges.txt`.
        whole: transformers' `tokenizer.json`, which has merges and added tokens.
        added: transformers' `added_tokens.json`, from texts to ids.
        settings: transformers' `special_tokens_map.json` and `tokenizer_config.json`, as far as
            they are there.
        own: what clipkit's own layout says of added tokens, by the arguments of `Tokenizer`.
    """

    merges: Path | None = None
    whole: Path | None = None
    added: Path | None = None
    settings: tuple[Path, ...] = ()
    own: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class _Added:
    """Hold a token that was added to a vocabulary."""

    text: str
    token: int
    is_exact: bool  # whether it is looked for in the text as it is, before that is cleaned


def read_tokenizer(files: TokenizerFiles, text: TextConfig) -> Tokenizer | None:
    """Read the tokenizer of the files beside weights.

    Args:
        files: where it is.
        text: of the model.

    Returns:
        The tokenizer; None where the files have none, or where it is CLIP's own.

    Raises:
        CorruptCheckpointError: if a file is damaged.
        ConfigError: if the tokenizer is of another model.
    """
    if files == TokenizerFiles():
        return None
    shown = str(files.whole or files.merges or files.added or "config.json")
    try:
        tokenizer = _read(files, text.context_length)
    except (TokenizerError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CorruptCheckpointError(
            f"{shown} has no tokenizer of CLIP's kind ({type(error).__name__}: {error}). Pass the "
            "right one as tokenizer=clipkit.Tokenizer(...)"
        ) from error
    if tokenizer.is_default:
        return None
    try:
        check_tokenizer(tokenizer, text)
    except ConfigError as error:
        raise ConfigError(f"{shown}: {error}") from error
    # Vocabularies are padded to a round number behind added tokens, and not without reason.
    if not tokenizer.added_tokens and tokenizer.vocab_size < text.vocab_size:
        raise ConfigError(f"{shown}: {_too_few(tokenizer, text)}")
    return tokenizer


def default_tokenizer(text: TextConfig) -> Tokenizer:
    """Return CLIP's own tokenizer for a model. Raise `ConfigError` if the model needs another."""
    tokenizer = Tokenizer(context_length=text.context_length)
    if tokenizer.vocab_size > text.vocab_size:
        raise ConfigError(
            f"the model has {text.vocab_size:,} tokens and the standard tokenizer "
            f"{tokenizer.vocab_size:,}: pass the one that belongs to the weights as "
            "tokenizer=clipkit.Tokenizer(merges, ...)"
        )
    if tokenizer.vocab_size < text.vocab_size:
        raise ConfigError(f"the standard tokenizer: {_too_few(tokenizer, text)}")
    check_tokenizer(tokenizer, text)
    return tokenizer


def check_tokenizer(tokenizer: Tokenizer, text: TextConfig) -> None:
    """Raise `ConfigError` if a tokenizer makes ids that a model would misread.

    Args:
        tokenizer: any value, which may be no tokenizer at all.
        text: of the model.
    """
    given: object = tokenizer
    if not isinstance(given, Tokenizer):
        raise ConfigError(f"a model's tokenizer is a clipkit.Tokenizer, not {given!r:.60}")
    if tokenizer.vocab_size > text.vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size:,} tokens, and the model "
            f"{text.vocab_size:,}: pass the one that belongs to the weights as "
            "tokenizer=clipkit.Tokenizer(merges, ...)"
        )
    if tokenizer.context_length > text.context_length:
        raise ConfigError(
            f"the tokenizer makes rows of {tokenizer.context_length} tokens, and the model takes "
            f"{text.context_length}: make it with context_length={text.context_length}"
        )
    if text.end_of_text not in (None, tokenizer.eot_token):
        raise ConfigError(
            f"the tokenizer ends texts with the id {tokenizer.eot_token}, and the model reads them "
            f"at {text.end_of_text} (its config's end_of_text, transformers' eos_token_id): pass "
            "the one that belongs to the weights as tokenizer=clipkit.Tokenizer(merges, ...)"
        )
    if text.end_of_text is None and tokenizer.added_tokens:
        _warn_of_highest_id(tokenizer.eot_token)


@functools.cache  # once is enough
def _warn_of_highest_id(end: int) -> None:
    """Say in the log that the ids of added tokens hide the end of a text from a model."""
    _LOG.warning(
        "the model reads a text at its highest id, which in texts with added tokens is not the end "
        "of text, %d. If it was not trained so, give its TextConfig end_of_text=%d",
        end,
        end,
    )


def _too_few(tokenizer: Tokenizer, text: TextConfig) -> str:
    """Say what to do about a model that has more tokens than its tokenizer."""
    first = tokenizer.vocab_size
    return (
        f"it knows the ids 0 to {first - 1}, and the model has {text.vocab_size:,} tokens. Load it "
        "with the texts of the others, as tokenizer=clipkit.Tokenizer(added_tokens={'<cat>': "
        f"{first}}}, context_length={text.context_length}), or without added_tokens if no text "
        "holds one"
    )


def _read(files: TokenizerFiles, context_length: int) -> Tokenizer:
    """Make the tokenizer of the files."""
    whole = {} if files.whole is None else read_json(files.whole, error=CorruptCheckpointError)
    tokenizer = Tokenizer(_read_merges(files, whole), context_length)
    options: dict[str, Any] = dict(files.own)
    if not options:
        added = _added_tokens(files, whole, tokenizer)
        options = {
            "added_tokens": {one.text: one.token for one in added},
            "exact_tokens": [one.text for one in added if one.is_exact],
        }
    if not options["added_tokens"]:
        return tokenizer
    return Tokenizer(tokenizer.merges, context_length, **options)


def _read_merges(files: TokenizerFiles, whole: dict[str, Any]) -> list[str] | None:
    """Return the lines of the merge table, or None if the files have none."""
    model = whole.get("model", {})
    if "merges" in model:  # strings "a b", and pairs since tokenizers 0.20
        return [one if isinstance(one, str) else " ".join(one) for one in model["merges"]]
    if files.merges is None:
        return None
    return read_text(files.merges, error=CorruptCheckpointError).splitlines()


def _added_tokens(
    files: TokenizerFiles, whole: dict[str, Any], tokenizer: Tokenizer
) -> list[_Added]:
    """Return the tokens behind those of the table that transformers' files name."""
    settings = [read_json(path, error=CorruptCheckpointError) for path in files.settings]
    special = [name for values in settings for name in _special_names(values)]
    found: dict[str, _Added] = {}
    if files.added is not None:
        for text, token in read_json(files.added, error=CorruptCheckpointError).items():
            found[text] = _Added(text, token, text in special)
    described = [one for values in settings for one in _of_decoder(values)]
    for values in [*whole.get("added_tokens", []), *described]:
        found[values["content"]] = _as_added(values)
    known = {START: tokenizer.sot_token, END: tokenizer.eot_token}
    for text, token in known.items():
        if text in found and found.pop(text).token != token:
            raise ValueError(f"{text} is not the token {token}, so the ids are in another order")
    # What has an id of the table is one of its symbols, such as "!", which some files name as the
    # token for padding. No text of the training data was read by that id.
    added = {text: one for text, one in found.items() if one.token > tokenizer.eot_token}
    symbols = {*byte_ids(), *(merge.replace(" ", "") for merge in tokenizer.merges), *known}
    for text in special:  # transformers gives the next id to a special token that has none
        if text not in found and text not in symbols:
            highest = max([tokenizer.eot_token, *(one.token for one in added.values())])
            added[text] = found[text] = _Added(text, highest + 1, True)
    return list(added.values())


def _special_names(values: dict[str, Any]) -> Iterator[str]:
    """Yield the special tokens that one of transformers' JSON files names."""
    for key in _SPECIAL:
        stated = values.get(key)
        for one in cast("list[Any]", stated if isinstance(stated, list) else [stated]):
            if isinstance(one, str):
                yield one
            elif isinstance(one, dict) and "content" in one:
                yield str(cast("dict[str, Any]", one)["content"])


def _of_decoder(values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the added tokens of `tokenizer_config.json` as `tokenizer.json` has them."""
    for token, about in values.get("added_tokens_decoder", {}).items():
        yield {"id": int(token), **about}


def _as_added(values: dict[str, Any]) -> _Added:
    """Return a token of `tokenizer.json`. Raise ValueError for one that we cannot find alike."""
    if values.get("single_word"):
        raise ValueError(
            f"the added token {values['content']!r} counts as a whole word only (single_word), "
            "which this tokenizer does not know"
        )
    return _Added(values["content"], values["id"], not values.get("normalized", True))
