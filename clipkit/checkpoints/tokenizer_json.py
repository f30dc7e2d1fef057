"""Describe a tokenizer as the `tokenizer.json` of the package tokenizers, which needs no torch."""

from typing import Any

from clipkit.checkpoints.describe import vocabulary
from clipkit.tokenizer import Tokenizer
from clipkit.words import END, START, word_pattern


def to_tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the content of a `tokenizer.json` that gives the ids of a tokenizer.

    Rows begin with the start of text, end with the end, and are filled with zeros. Nothing cuts a
    text that is too long: its row is longer. Texts that ftfy or HTML's rules would mend are not
    mended. START and END in a text are ordinary characters.

    Args:
        tokenizer: of a model.

    Example:
        values = to_tokenizer_json(model.tokenizer)
        ids = tokenizers.Tokenizer.from_str(json.dumps(values)).encode("a cat").ids
    """
    return {
        "version": "1.0",
        "truncation": None,
        "padding": {
            "strategy": {"Fixed": tokenizer.context_length},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "",
        },
        "added_tokens": _added_tokens(tokenizer),
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
                {"type": "Lowercase"},
            ],
        },
        "pre_tokenizer": _pre_tokenizer(),
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": [END, tokenizer.eot_token],
            "cls": [START, tokenizer.sot_token],
            "trim_offsets": False,
            "add_prefix_space": False,
        },
        "decoder": _byte_level(add_prefix_space=True, use_regex=True),
        "model": _model(tokenizer),
    }


def _pre_tokenizer() -> dict[str, Any]:
    """Describe how a text is cut into words, and these into the letters of their bytes."""
    words = {"Regex": word_pattern(False).pattern}
    split = {"type": "Split", "pattern": words, "behavior": "Removed", "invert": True}
    letters = _byte_level(add_prefix_space=False, use_regex=False)
    return {"type": "Sequence", "pretokenizers": [split, letters]}


def _byte_level(*, add_prefix_space: bool, use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _model(tokenizer: Tokenizer) -> dict[str, Any]:
    """Describe the table of merges."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": END,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "</w>",
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": vocabulary(tokenizer),
        "merges": list(tokenizer.merges),
    }


def _added_tokens(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    return [
        {
            "id": token,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": text not in tokenizer.exact_tokens,
            "special": False,
        }
        for text, token in sorted(tokenizer.added_tokens.items(), key=lambda item: item[1])
    ]
