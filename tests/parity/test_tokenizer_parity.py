"""Test token ids against open_clip's copy of OpenAI's tokenizer, on text of all kinds."""

import html.entities
import random
from typing import Any

import pytest

from clipkit.tokenizer import Tokenizer, default_merges
from clipkit.words import END, START

reference_module = pytest.importorskip("open_clip.tokenizer")

# First and last code point of blocks of Unicode.
BLOCKS = [
    *[(0x20, 0x7E)] * 4, (0x00, 0x1F), (0x7F, 0xA0), (0xA0, 0xFF), (0x100, 0x24F), (0x250, 0x2AF),
    (0x2B0, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF), (0x530, 0x5FF), (0x600, 0x6FF), (0x900, 0x97F),
    (0xE00, 0xE7F), (0x10A0, 0x11FF), (0x13A0, 0x13FF), (0x1C80, 0x1CBF), (0x1E00, 0x1FFF),
    (0x2000, 0x206F), (0x2070, 0x218F), (0x2190, 0x22FF), (0x2460, 0x27BF), (0x3000, 0x30FF),
    (0x4E00, 0x4FFF), (0xA640, 0xA7FF), (0xAB30, 0xABBF), (0xAC00, 0xAD00), (0xD800, 0xDFFF),
    (0xE000, 0xE0FF), (0xFB00, 0xFDFF), (0xFE00, 0xFE6F), (0xFF00, 0xFFEF), (0x10400, 0x104FF),
    (0x1D400, 0x1D7FF), (0x1E900, 0x1E95F), (0x1F1E6, 0x1F1FF), (0x1F300, 0x1F9FF),
    (0xE0000, 0xE007F),
]  # fmt: skip
SNIPPETS = [
    *"""a photo of 123 don't it's 'ſ 'S 'LL <| |> </w> < ſ İ Σ ΟΔΟΣ ß ﬁ""".split(),
    *"ＦＵＬＬ “q” ‘s ’s é مرحبا".split(),
    *"&amp; &amp;amp; &lt;b&gt; &#39; &#x1F600; &#28; &#xD800; &nbsp; &eacute; &AMP".split(),
    *"schÃ¶n â€™ Ã© ðŸ˜€".split(),  # UTF-8 read as something else
    *("\x1b[31m", "\r\n", "\n", "\t", "\u2028", "\x85", "\x1c", "\xa0", "\u3000", "\u200d"),
    *("\ufeff", "\u202e"),
    *("\u212a", "e\u0301"),  # Kelvin sign, combining accent
    *("👩\u200d👧", "🏳\ufe0f\u200d🌈"),  # joined emoji
]
ENTITIES = sorted(html.entities.html5)
ENCODINGS = ["latin-1", "cp1252", "cp1251", "mac_roman", "iso8859-2"]


def characters(rng: random.Random, count: int, block: tuple[int, int] | None = None) -> str:
    return "".join(
        chr(rng.randint(*(block or rng.choice(BLOCKS)))) for _ in range(rng.randint(0, count))
    )


def some_text(rng: random.Random) -> str:
    match rng.randrange(7):
        case 0:  # one script
            return characters(rng, 24, rng.choice(BLOCKS))
        case 1:  # all mixed
            return characters(rng, 24)
        case 2 | 3:  # awkward pieces
            return "".join(
                rng.choice(SNIPPETS) + rng.choice(["", "", " "]) for _ in range(rng.randint(0, 10))
            )
        case 4:  # UTF-8 read as something else
            return (
                characters(rng, 12)
                .encode("utf-8", "ignore")
                .decode(rng.choice(ENCODINGS), "ignore")
            )
        case 5:
            return "".join(
                "&" + rng.choice(ENTITIES) + rng.choice(["", ";", " "]) for _ in range(4)
            )
        case _:
            return characters(rng, 60, (0x20, 0x7E))


@pytest.fixture(scope="module")
def reference() -> Any:
    return reference_module.SimpleTokenizer()


@pytest.fixture(scope="module")
def openai(reference: Any) -> Any:
    """Return OpenAI's own: as open_clip's, but with OpenAI's spelling of the special tokens."""
    tokenizer = reference_module.SimpleTokenizer()
    tokenizer.encoder |= {START: tokenizer.sot_token_id, END: tokenizer.eot_token_id}
    tokenizer.cache = {START: START, END: END}
    pattern = reference.pat.pattern.replace(
        "<start_of_text>|<end_of_text>", r"<\|startoftext\|>|<\|endoftext\|>"
    )
    assert "startoftext" in pattern
    tokenizer.pat = reference_module.re.compile(pattern, reference_module.re.IGNORECASE)
    return tokenizer


def test_table(reference: Any) -> None:
    assert tuple(" ".join(pair) for pair in reference.bpe_ranks) == default_merges()
    ours = Tokenizer()
    assert [reference.encoder[symbol] for symbol in ours._symbols] == list(range(49406))
    assert ours.sot_token == reference.sot_token_id
    assert ours.eot_token == reference.eot_token_id


@pytest.mark.parametrize("seed", range(4))
def test_fuzz(reference: Any, seed: int) -> None:
    rng = random.Random(seed)
    texts = [some_text(rng) for _ in range(1500)]
    ours = Tokenizer()
    for text in texts:
        assert ours.encode(text) == reference.encode(text), repr(text)
    assert ours(texts, truncate=True).equal(reference(texts))
    assert ours(texts, context_length=9, truncate=True).equal(reference(texts, context_length=9))


def test_special_tokens_as_openai(openai: Any) -> None:
    rng = random.Random(7)
    ours = Tokenizer()
    pieces = [START, END, "<|EndOfText|>", "a", "dog", " ", "!", "<|", "|>", "é", "1", "'s", "\n"]
    for _ in range(500):
        text = "".join(rng.choices(pieces, k=rng.randint(0, 9)))
        assert ours.encode(text, allow_special=True) == openai.encode(text), repr(text)
        assert max(ours.encode(text), default=0) < ours.sot_token


def test_class_prompts(reference: Any) -> None:
    metadata = pytest.importorskip("open_clip.zero_shot_metadata")
    names = metadata.IMAGENET_CLASSNAMES
    templates = metadata.OPENAI_IMAGENET_TEMPLATES
    texts = [templates[i % 80](name) for i, name in enumerate(names)] + [
        template(names[0]) for template in templates
    ]
    assert Tokenizer()(texts).equal(reference(texts))


def test_first_merges(reference: Any) -> None:
    """The first n merges make the published tokenizer as it was after n steps of its training."""
    small = Tokenizer(default_merges()[:3000])
    old = reference_module.SimpleTokenizer()
    old.bpe_ranks = {pair: rank for pair, rank in old.bpe_ranks.items() if rank < 3000}
    rng = random.Random(11)
    for _ in range(500):
        text = some_text(rng)
        assert small.encode(text) == old.encode(text), repr(text)


def test_long_words(reference: Any) -> None:
    rng = random.Random(13)
    ours = Tokenizer()
    for alphabet in ("ab", "aeinrst", "犬の写真と猫"):
        text = "".join(rng.choices(alphabet, k=300))
        assert ours.encode(text) == reference.encode(text)
