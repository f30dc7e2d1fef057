"""Tokenizer: golden ids of the published table, the fast paths against the slow one, tables of one's own, errors."""

import copy
import hashlib
import pickle
import random
import string

import numpy as np
import pytest
import torch

from clipkit import tokenizer as module
from clipkit.errors import TokenizerError
from clipkit.tokenizer import Tokenizer, default_merges, tokenize

# Ids as open_clip 3.3.0 gives them; parity/test_tokenizer_parity.py compares at large.
GOLDEN = {
    "": [],
    "a diagram": [320, 22697],
    "a photo of a dog.": [320, 1125, 539, 320, 1929, 269],
    "  A \t DOG\n": [320, 1929],
    "It's 2021!": [585, 568, 273, 271, 273, 272, 256],
    "naïve café": [1097, 35689, 563, 15304],
    "schÃ¶n": [844, 7255, 333],
    "&lt;b&gt; &amp;amp; c": [283, 321, 285, 261, 322],
    "ＦＵＬＬ ﬁt “q”": [1476, 2478, 257, 336, 257],
    "犬の写真": [163, 232, 105, 21575, 44653, 33440, 509],
    "👩\u200d👩\u200d👧": [26304, 26304, 964, 356],
    "'ſ": [6, 129, 379],
    "ΟΔΟΣ": [138, 123, 138, 112, 138, 123, 139, 480],
    "antidisestablishmentarianism": [3120, 4262, 7726, 12658, 1585, 44351],
    "<|endoftext|>": [27, 347, 40786, 4160, 91, 285],
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer()


def test_table(tokenizer: Tokenizer) -> None:
    text = "\n".join(default_merges()).encode()
    assert (
        hashlib.sha256(text).hexdigest()
        == "f61f2adf497e6f5357c347aeb4646fabe82f341e946de5bdec5d2858e41bef4a"
    )
    assert len(default_merges()) == 48894 and len(set(tokenizer._symbols)) == 49406
    assert (tokenizer.vocab_size, tokenizer.sot_token, tokenizer.eot_token) == (49408, 49406, 49407)
    assert tokenizer.is_default and tokenizer.merges == default_merges()


@pytest.mark.parametrize("text", GOLDEN)
def test_golden(tokenizer: Tokenizer, text) -> None:
    assert tokenizer.encode(text) == GOLDEN[text]
    assert tokenizer.count(text) == len(GOLDEN[text]) + 2


def test_rows() -> None:
    """Plain and other texts mixed, so that the whole batch passes through both kinds of cleaning."""
    tokens = tokenize(list(GOLDEN))
    assert tokens.shape == (len(GOLDEN), 77) and tokens.dtype == torch.int64
    for row, ids in zip(tokens.tolist(), GOLDEN.values(), strict=True):
        assert row == [49406, *ids, 49407] + [0] * (75 - len(ids))


def test_shapes(tokenizer: Tokenizer) -> None:
    assert tokenizer([]).shape == (0, 77) and tokenizer([]).dtype == torch.int64
    assert (
        tokenizer("a dog").tolist()
        == tokenizer(["a dog"]).tolist()
        == tokenizer(t for t in ["a dog"]).tolist()
    )
    assert tokenizer(np.array(["a dog", "a cat"])).shape == (2, 77)
    assert tokenizer("", context_length=3).tolist() == [[49406, 49407, 0]]
    assert Tokenizer(context_length=8)(["a dog"]).shape == (1, 8)


def test_sigma_and_spaces_do_not_reach_across_texts(tokenizer: Tokenizer) -> None:
    texts = ["ΑΣ", "Σ", "A" + " " * 9, " ", "ΑΣ Α", "İ"]
    for row, text in zip(tokenizer(texts).tolist(), texts, strict=True):
        assert row[1 : 1 + len(tokenizer.encode(text))] == tokenizer.encode(text)
        assert row[1 + len(tokenizer.encode(text))] == tokenizer.eot_token


def test_truncate(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("one two three four")
    tokens = tokenizer(
        ["one two three four", "a", "one two three"], context_length=5, truncate=True
    )
    assert tokens.tolist() == [
        [49406, *ids[:3], 49407],
        [49406, 320, 49407, 0, 0],
        [49406, *ids[:3], 49407],
    ]


def test_overflow(tokenizer: Tokenizer) -> None:
    assert tokenizer(["dog " * 75]).count_nonzero() == 77
    with pytest.raises(
        TokenizerError,
        match=r"78 tokens, more than context_length=77: 'dog .*\.\.\.'.*truncate=True",
    ):
        tokenizer(["fits", "dog " * 76])
    with pytest.raises(
        TokenizerError, match=r"text has 4 tokens, more than context_length=3: 'a dog'"
    ):
        tokenize("a dog", context_length=3)


def test_special_tokens(tokenizer: Tokenizer) -> None:
    text = "<|startoftext|>a <|ENDOFTEXT|> b!<|endoftext|>"
    escaped = tokenizer.encode(text)
    assert max(escaped) < tokenizer.sot_token
    assert (tokenizer(text) == tokenizer.eot_token).sum() == 1
    # The last one follows punctuation, which OpenAI's pattern swallows together with "<|".
    parsed = [49406, 320, 49407, 321, *tokenizer.encode("!<|"), *tokenizer.encode("endoftext|>")]
    assert tokenizer.encode(text, allow_special=True) == parsed
    assert tokenizer([text, "a"], allow_special=True)[:, :13].tolist() == [
        [49406, *parsed, 49407],
        [49406, 320, 49407] + [0] * 10,
    ]
    assert tokenizer.encode(text) == escaped


def test_decode(tokenizer: Tokenizer) -> None:
    pairs = {
        "It's 犬 2021!": "it 's 犬 2 0 2 1 !",
        "a  Photo": "a photo",
        "": "",
        "👩\u200d👧": "👩\u200d👧",
    }
    for text, mended in pairs.items():
        tokens = tokenizer(text)[0]
        for ids in (tokens, tokens.numpy(), tokens.tolist()):
            assert tokenizer.decode(ids) == mended
        assert tokenizer.encode(mended) == tokenizer.encode(text)
    assert tokenizer.decode([163]) == "\ufffd"
    with pytest.raises(
        TokenizerError, match="token id 49408 is outside the vocabulary, 0 to 49407"
    ):
        tokenizer.decode([320, 49408])
    with pytest.raises(TokenizerError, match="token id -1 is outside"):
        tokenizer.decode([-1])
    with pytest.raises(TokenizerError, match="one row of integer ids"):
        tokenizer.decode(tokenizer(["a", "b"]))


def test_plain_path_is_exact(tokenizer: Tokenizer) -> None:
    """What skips cleaning must tokenise as if it had not."""
    import ftfy

    random.seed(0)
    for _ in range(300):
        text = "".join(random.choices(string.printable[:95] + " " * 20, k=random.randint(0, 40)))
        cleaned = " ".join(ftfy.fix_text(text).split())
        assert module._is_plain(text) == ("&" not in text)
        assert not module._is_plain(text + random.choice("\t\n\x0b\x1c\x7f\xa0é&"))
        pieces = module._pattern(False).findall(cleaned.lower())
        if "&" not in text:
            assert tokenizer.encode(text) == [
                i for piece in pieces for i in tokenizer._merge(piece)
            ]


def test_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHE_WORDS", 10)
    tokenizer = Tokenizer()
    texts = [f"word{i} {'x' * 100} dog" for i in range(50)]
    first = tokenizer(texts, truncate=True)
    assert len(tokenizer._words[False]) <= 10
    assert max(map(len, tokenizer._words[False])) <= module.CACHE_CHARACTERS
    assert torch.equal(tokenizer(texts, truncate=True), first) and torch.equal(
        Tokenizer()(texts, truncate=True), first
    )


def test_own_tables(tokenizer: Tokenizer) -> None:
    small = Tokenizer(default_merges()[:1000], context_length=32)
    assert (small.vocab_size, small.eot_token, small.is_default) == (1514, 1513, False)
    assert (
        small("antidisestablishment").max() == 1513 and small.decode(small("a Dog")[0]) == "a dog"
    )
    letters = Tokenizer([])
    assert letters.vocab_size == 514 and letters.encode("ab") == [
        ord("a") - 33,
        ord("b") - 33 + 256,
    ]
    text = "#version: 0.2\n" + "\n".join(small.merges)
    assert Tokenizer(text.splitlines(), context_length=32) == small != tokenizer
    assert Tokenizer(default_merges()).is_default


def test_ranks_rule() -> None:
    """The earliest merge wins wherever it stands, and equal ones go from left to right."""
    assert Tokenizer(["b c", "a b"]).decode(Tokenizer(["b c", "a b"]).encode("abcd")) == "abcd"
    assert Tokenizer(["b c", "a b"]).encode("abcd") == [ord("a") - 33, 512, ord("d") - 33 + 256]
    assert Tokenizer(["a a"]).encode("aaab") == [512, ord("a") - 33, ord("b") - 33 + 256]


@pytest.mark.parametrize(
    "merges",
    [
        ["ab"],
        ["a b c"],
        ["a b", "abc d"],
        ["a b", "a b"],
        ["b c", "a bc", "a b", "ab c"],
        ["", "a b"],
        "a b",
    ],
)
def test_bad_tables(merges) -> None:
    with pytest.raises(
        TokenizerError, match=r"merge \d, .* must join two earlier symbols to a new one"
    ):
        Tokenizer(merges)


@pytest.mark.parametrize("texts", [None, 3, b"a dog", ["a", None], [["a"]], [b"a"]])
def test_no_strings(tokenizer: Tokenizer, texts) -> None:
    with pytest.raises(TokenizerError, match="must be a string"):
        tokenizer(texts)
    with pytest.raises(TokenizerError, match="a text must be a string, not"):
        tokenizer.encode(texts)


@pytest.mark.parametrize("length", [1, 0, -3, 7.0, "77"])
def test_bad_context_length(tokenizer: Tokenizer, length) -> None:
    with pytest.raises(TokenizerError, match="context_length must be an integer of at least 2"):
        tokenizer("a", context_length=length)
    with pytest.raises(TokenizerError, match="context_length must be an integer of at least 2"):
        Tokenizer(context_length=length)


def test_copies(tokenizer: Tokenizer) -> None:
    small = Tokenizer(default_merges()[:100], context_length=9)
    for original in (tokenizer, small):
        for twin in (pickle.loads(pickle.dumps(original)), copy.deepcopy(original)):
            assert twin == original and twin.is_default == original.is_default
            assert twin(["a dog"]).tolist() == original(["a dog"]).tolist()
    assert len(pickle.dumps(tokenizer)) < 200, "the shipped table does not travel"
