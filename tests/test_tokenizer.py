"""Test golden ids of the published table, the fast paths against the slow one, and refusals."""

import copy
import hashlib
import html
import pickle
import random
import string
import time
from typing import Any

import ftfy
import numpy as np
import pytest
import torch

from clipkit import tokenizer as module
from clipkit import words
from clipkit.byte_pairs import merge_word
from clipkit.errors import TokenizerError
from clipkit.tokenizer import Tokenizer, default_merges, tokenize

# Ids as open_clip 3.3.0 gives them. parity/test_tokenizer_parity.py compares many more texts.
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
    assert len(default_merges()) == 48894
    assert len(set(tokenizer._symbols)) == 49406
    assert tokenizer.vocab_size == 49408
    assert tokenizer.sot_token == 49406
    assert tokenizer.eot_token == 49407
    assert tokenizer.is_default
    assert tokenizer.merges == default_merges()


@pytest.mark.parametrize("text", GOLDEN)
def test_golden(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.encode(text) == GOLDEN[text]
    assert tokenizer.count(text) == len(GOLDEN[text]) + 2


def test_rows() -> None:
    """Tokenize plain and other texts together, so that cleaning cannot be skipped for the batch."""
    tokens = tokenize(list(GOLDEN))
    assert tokens.shape == (len(GOLDEN), 77)
    assert tokens.dtype == torch.int64
    for row, ids in zip(tokens.tolist(), GOLDEN.values(), strict=True):
        assert row == [49406, *ids, 49407] + [0] * (75 - len(ids))


def test_shapes(tokenizer: Tokenizer) -> None:
    assert tokenizer([]).shape == (0, 77)
    assert tokenizer([]).dtype == torch.int64
    assert tokenizer("a dog").equal(tokenizer(["a dog"]))
    assert tokenizer("a dog").equal(tokenizer(text for text in ["a dog"]))
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
    # The last one follows punctuation, and OpenAI's pattern takes "!<|" as one word.
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
    """A text that skips cleaning must give the same ids as if it had been cleaned."""
    import ftfy

    random.seed(0)
    for _ in range(300):
        text = "".join(random.choices(string.printable[:95] + " " * 20, k=random.randint(0, 40)))
        cleaned = " ".join(ftfy.fix_text(text).split())
        assert words.is_plain(text) == ("&" not in text)
        assert not words.is_plain(text + random.choice("\t\n\x0b\x1c\x7f\xa0é&"))
        pieces = words.word_pattern(False).findall(cleaned.lower())
        if "&" not in text:
            merged = [merge_word(piece, tokenizer._ranks) for piece in pieces]
            assert tokenizer.encode(text) == [token for ids in merged for token in ids]


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_ids_do_not_follow_torchs_default_dtype(default: torch.dtype) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        assert tokenize(["a dog"]).dtype == torch.int64
        assert tokenize([]).dtype == torch.int64
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(
    "alphabet", [string.ascii_lowercase, string.ascii_letters + "0123456789+/"]
)
def test_a_long_unbroken_run_is_merged_like_short_words(
    tokenizer: Tokenizer, alphabet: str
) -> None:
    """A blob among captions must not stop a data loader: 80,000 letters took half a minute."""
    text = "".join(random.Random(0).choices(alphabet, k=80_000))
    start = time.process_time()
    tokens = tokenizer([text], truncate=True)
    assert time.process_time() - start < 8
    assert tokens.count_nonzero() == 77
    # A prefix that ends well beyond the row shares its first tokens.
    assert tokens[0, :76].equal(tokenizer([text[:1000]], truncate=True)[0, :76])


def test_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHE_WORDS", 10)
    tokenizer = Tokenizer()
    texts = [f"word{i} {'x' * 100} dog" for i in range(50)]
    first = tokenizer(texts, truncate=True)
    assert len(tokenizer._words[False]) <= 10
    assert max(map(len, tokenizer._words[False])) <= module.CACHE_CHARACTERS
    assert tokenizer(texts, truncate=True).equal(first)
    assert Tokenizer()(texts, truncate=True).equal(first)


def test_words_are_kept_for_the_next_text(tokenizer: Tokenizer) -> None:
    fresh = Tokenizer()
    encoded: list[str] = []
    encode = fresh._words[False].encode
    fresh._words[False].encode = lambda word: encoded.append(word) or encode(word)
    words = [f"word{i}" for i in range(500)]
    for _ in range(2):
        fresh([" ".join(words)], truncate=True)
    assert sorted(word for word in encoded if word != module.SEPARATOR) == sorted(words)


def test_own_tables(tokenizer: Tokenizer) -> None:
    small = Tokenizer(default_merges()[:1000], context_length=32)
    assert small.vocab_size == 1514
    assert small.eot_token == 1513
    assert not small.is_default
    assert small("antidisestablishment").max() == 1513
    assert small.decode(small("a Dog")[0]) == "a dog"
    letters = Tokenizer([])
    assert letters.vocab_size == 514
    assert letters.encode("ab") == [ord("a") - 33, ord("b") - 33 + 256]
    text = "#version: 0.2\n" + "\n".join(small.merges)
    assert Tokenizer(text.splitlines(), context_length=32) == small
    assert small != tokenizer
    assert Tokenizer(default_merges()).is_default


def test_ranks_rule() -> None:
    """The earliest merge wins wherever it is, and equal ones go from left to right."""
    assert Tokenizer(["b c", "a b"]).decode(Tokenizer(["b c", "a b"]).encode("abcd")) == "abcd"
    assert Tokenizer(["b c", "a b"]).encode("abcd") == [ord("a") - 33, 512, ord("d") - 33 + 256]
    assert Tokenizer(["a a"]).encode("aaab") == [512, ord("a") - 33, ord("b") - 33 + 256]


NO_TABLES: list[Any] = [
    ["ab"],
    ["a b c"],
    ["a b", "abc d"],
    ["a b", "a b"],
    ["b c", "a bc", "a b", "ab c"],
    ["", "a b"],
    "a b",
    b"a b",
    [5],
    [None],
    [b"a b"],
    [["a", "b"]],
]


@pytest.mark.parametrize("merges", NO_TABLES)
def test_bad_tables(merges: Any) -> None:
    with pytest.raises(
        TokenizerError, match=r"merge \d, .* must join two earlier symbols to a new"
    ):
        Tokenizer(merges)


@pytest.mark.parametrize("table", [5, 1.5, True, np.array(5), torch.tensor(5), object(), len])
def test_a_table_that_is_no_list(table: Any) -> None:
    kind = type(table).__name__
    with pytest.raises(TokenizerError, match=f"merges must be lines 'a b', not {kind}"):
        Tokenizer(table)


@pytest.mark.parametrize("texts", [None, 3, b"a dog", ["a", None], [["a"]], [b"a"]])
def test_no_strings(tokenizer: Tokenizer, texts: Any) -> None:
    with pytest.raises(TokenizerError, match="must be a string"):
        tokenizer(texts)
    with pytest.raises(TokenizerError, match="a text must be a string, not"):
        tokenizer.encode(texts)


@pytest.mark.parametrize("length", [1, 0, -3, 7.0, "77", True])
def test_bad_context_length(tokenizer: Tokenizer, length: Any) -> None:
    with pytest.raises(TokenizerError, match="context_length must be an integer of at least 2"):
        tokenizer("a", context_length=length)
    with pytest.raises(TokenizerError, match="context_length must be an integer of at least 2"):
        Tokenizer(context_length=length)


def test_copies(tokenizer: Tokenizer) -> None:
    small = Tokenizer(default_merges()[:100], context_length=9)
    for original in (tokenizer, small):
        for twin in (pickle.loads(pickle.dumps(original)), copy.deepcopy(original)):
            assert twin == original
            assert twin.is_default == original.is_default
            assert twin(["a dog"]).tolist() == original(["a dog"]).tolist()
    assert len(pickle.dumps(tokenizer)) < 200, "the shipped table does not travel"


# Kind O: time that grows with the square of a text.
def test_ampersands_that_were_escaped_again_and_again_take_no_time() -> None:
    text = "a &" + "amp;" * 20 + "lt; b"
    expected = html.unescape(html.unescape(ftfy.fix_text(text)))
    assert words.clean(text) == expected
    start = time.process_time()
    tokenize("&" + "amp;" * 200_000, truncate=True)
    assert time.process_time() - start < 5
