"""The package tokenizers reads ours: the same ids, of CLIP's own table and of others."""

import json
from typing import Any

import pytest

from clipkit import Tokenizer
from clipkit.checkpoints.tokenizer_json import to_tokenizer_json
from tests.helpers.models import make_small_tokenizer

tokenizers: Any = pytest.importorskip("tokenizers")

TEXTS = [
    "a photo of a cat",
    "",
    "  A  Cat's\tin\nJEANS!!  ",
    "日本語 größe 12345 don't",
    "<|endoftext|> is a text like any other",
    "🙂 emoji, and (punctuation) -- of all kinds...",
]


def read(tokenizer: Tokenizer) -> Any:
    return tokenizers.Tokenizer.from_str(json.dumps(to_tokenizer_json(tokenizer)))


@pytest.mark.parametrize("kind", ["CLIP's own", "small"])
def test_the_ids_are_the_same(kind: str) -> None:
    tokenizer = Tokenizer() if kind == "CLIP's own" else make_small_tokenizer()
    length = 77 if kind == "CLIP's own" else 128
    tokenizer = Tokenizer(tokenizer.merges, context_length=length)
    other = read(tokenizer)
    for text in TEXTS:
        assert other.encode(text).ids == tokenizer([text])[0].tolist(), text


def test_added_tokens_are_found() -> None:
    merges = make_small_tokenizer().merges
    tokenizer = Tokenizer(merges, 32, {"<cat>": 600, "<Dog>": 601}, ["<Dog>"])
    other = read(tokenizer)
    for text in ("a <cat> there", "a <CAT> there", "<Dog>", "a <dog> there"):
        assert other.encode(text).ids == tokenizer([text])[0].tolist(), text


def test_a_text_that_is_too_long_is_not_cut() -> None:
    assert len(read(make_small_tokenizer()).encode("dog " * 30).ids) > 16
