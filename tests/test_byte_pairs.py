"""Test the merging of words: both ways against OpenAI's rule, and the growth of time."""

import random
import string
import time
from collections.abc import Mapping

import pytest

from clipkit.byte_pairs import (
    BYTE_TOKENS,
    END_OF_WORD,
    LONG_WORD,
    byte_ids,
    letter_of_byte,
    merge_by_heap,
    merge_by_search,
    merge_known_word,
    merge_word,
)
from clipkit.tokenizer import Tokenizer, default_merges

RANKS = {merge: rank for rank, merge in enumerate(default_merges())}


def merge_all_of_a_rank(symbols: list[str], ranks: Mapping[str, int]) -> list[int]:
    """Join all pairs of the lowest rank from left to right, and repeat, as OpenAI's code does."""
    while pairs := {f"{a} {b}" for a, b in zip(symbols, symbols[1:], strict=False)} & ranks.keys():
        best = min(pairs, key=ranks.__getitem__)
        joined: list[str] = []
        rest = list(symbols)
        while rest:
            pair = len(rest) > 1 and f"{rest[0]} {rest[1]}" == best
            joined.append(rest[0] + rest[1] if pair else rest[0])
            rest = rest[2:] if pair else rest[1:]
        symbols = joined
    merged = {merge.replace(" ", ""): BYTE_TOKENS + rank for merge, rank in ranks.items()}
    known = byte_ids() | merged
    return [known[symbol] for symbol in symbols]


def symbols_of(letters: str) -> list[str]:
    return [*letters[:-1], letters[-1] + "</w>"]


def random_table(rng: random.Random, alphabet: str, size: int) -> dict[str, int]:
    """Return merges of symbols that exist, in a random order of invention."""
    symbols = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    table: dict[str, int] = {}
    while len(table) < size:
        first = rng.choice([symbol for symbol in symbols if not symbol.endswith("</w>")])
        second = rng.choice(symbols)
        if first + second not in symbols:
            table[f"{first} {second}"] = len(table)
            symbols.append(first + second)
    return table


def test_letters_are_those_of_gpt2() -> None:
    assert len(set(letter_of_byte().values())) == 256
    assert letter_of_byte()[ord("a")] == "a"
    assert letter_of_byte()[0] == chr(256)
    assert letter_of_byte()[ord(" ")] == "Ġ"
    assert list(byte_ids().values()) == list(range(BYTE_TOKENS))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("alphabet", ["ab", "abc", "abcdefgh"])
def test_both_ways_follow_the_rule_for_any_table(alphabet: str, seed: int) -> None:
    """Few letters and many merges make equal pairs, overlapping pairs and long chains of merges."""
    rng = random.Random(seed)
    ranks = random_table(rng, alphabet, size=rng.randint(0, 40))
    for _ in range(60):
        word = "".join(rng.choices(alphabet, k=rng.randint(1, 40)))
        expected = merge_all_of_a_rank(symbols_of(word), ranks)
        assert merge_by_search(symbols_of(word), ranks) == expected, word
        assert merge_by_heap(symbols_of(word), ranks) == expected, word
        assert merge_word(word, ranks) == expected, word


@pytest.mark.parametrize(
    "alphabet", ["a", "ab", "aeinrst", string.ascii_lowercase, "".join(letter_of_byte().values())]
)
def test_both_ways_agree_on_the_published_table(alphabet: str) -> None:
    rng = random.Random(1)
    lengths = [*range(1, 80), LONG_WORD - 1, LONG_WORD, LONG_WORD + 1, 300, 1000]
    for length in lengths:
        word = "".join(rng.choices(alphabet, k=length))
        searched = merge_by_search(symbols_of(word), RANKS)
        assert merge_by_heap(symbols_of(word), RANKS) == searched, word
        assert merge_word(word, RANKS) == searched, word


def test_time_grows_nearly_as_the_length_does() -> None:
    """Eight times the letters would take 64 times as long if each step looked at the whole word."""

    def seconds(length: int) -> float:
        word = "".join(random.Random(2).choices(string.ascii_lowercase, k=length))
        start = time.process_time()
        merge_word(word, RANKS)
        return time.process_time() - start

    short = min(seconds(5_000) for _ in range(3))
    long = min(seconds(40_000) for _ in range(2))
    assert long < 25 * short


def test_every_word_that_is_one_token_is_joined_to_it() -> None:
    """Which is why `merge_known_word` may look for the whole word first."""
    wrong: list[str] = []
    words = 0
    for token, merge in enumerate(default_merges(), start=BYTE_TOKENS):
        first, second = merge.split(" ")
        if second.endswith(END_OF_WORD):
            word = first + second.removesuffix(END_OF_WORD)
            words += 1
            if not merge_word(word, RANKS) == merge_known_word(word, RANKS) == [token]:
                wrong.append(word)
    assert wrong == []
    assert words == 34_227


@pytest.mark.parametrize("seed", range(3))
def test_known_words_are_no_others(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(300):
        word = "".join(draw.choices(string.ascii_lowercase, k=draw.randint(1, 12)))
        assert merge_known_word(word, RANKS) == merge_word(word, RANKS), word


def test_an_earlier_pair_stands_in_the_way_of_a_word_in_another_table() -> None:
    merges = ["b c</w>", "a b", "ab c</w>"]
    tokenizer = Tokenizer(merges)
    assert tokenizer.encode("abc") == merge_word(
        "abc", {merge: i for i, merge in enumerate(merges)}
    )
    assert tokenizer.encode("abc") == [ord("a") - ord("!"), BYTE_TOKENS]  # a, bc
