"""Byte-pair merging of one word: its letters are joined pair by pair, by a ranked table.

Sennrich et al. 2016 (1508.07909), on bytes as in GPT-2 (Radford et al. 2019).
"""

import functools
from collections.abc import Iterable, Mapping
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import cast

from clipkit.errors import TokenizerError

END_OF_WORD = "</w>"
BYTE_TOKENS = 512  # each byte inside a word, and each byte at the end of one
LONG_WORD = 48  # from so many letters on, a heap is faster than a search of the whole word
_JOINED = -1  # the id of a symbol that is a part of the one before it now


@functools.cache
def letter_of_byte() -> dict[int, str]:
    """Map each byte to the printable character that stands for it, in the order of the ids.

    This is GPT-2's convention: printable bytes stand for themselves and come first.
    """
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = sorted(set(range(256)) - set(printable))
    own = {byte: chr(byte) for byte in printable}
    return own | {byte: chr(256 + n) for n, byte in enumerate(others)}


@functools.cache
def byte_ids() -> dict[str, int]:
    """Map the first 512 symbols to their ids: bytes inside a word, then bytes at the end of one."""
    letters = list(letter_of_byte().values())
    symbols = letters + [letter + END_OF_WORD for letter in letters]
    return {symbol: i for i, symbol in enumerate(symbols)}


def merge_word(letters: str, ranks: Mapping[str, int]) -> list[int]:
    """Return the token ids of one word.

    The pair of neighbors that ranks earliest in the table is joined, the leftmost one if there are
    several, until no pair is in the table. OpenAI's code joins all pairs of one rank at a time. The
    result is the same, because every pair that holds a new symbol ranks later.

    Args:
        letters: at least one of the characters of `letter_of_byte`, one per byte of the word.
        ranks: the place in the table of each merge "a b".

    Returns:
        Ids below 512 + merges.

    Example:
        >>> merge_word("abc", {"b c</w>": 0})
        [64, 512]
    """
    symbols = [*letters[:-1], letters[-1] + END_OF_WORD]
    merge = merge_by_search if len(symbols) < LONG_WORD else merge_by_heap
    return merge(symbols, ranks)


def merge_known_word(letters: str, ranks: Mapping[str, int]) -> list[int]:
    """Return the token ids of one word, as `merge_word` does, sooner if it is one token.

    This holds for CLIP's own table, in which each word that is one token also becomes one when its
    letters are joined pair by pair. In another table an earlier pair may stand in the way.

    Args:
        letters, ranks: as in `merge_word`.
    """
    if len(letters) < LONG_WORD:
        for cut in range(1, len(letters)):  # the last pair that was joined, if there was one
            rank = ranks.get(f"{letters[:cut]} {letters[cut:]}{END_OF_WORD}")
            if rank is not None:
                return [BYTE_TOKENS + rank]
    return merge_word(letters, ranks)


def merge_by_search(symbols: list[str], ranks: Mapping[str, int]) -> list[int]:
    """Merge a word as `merge_word` says, with a search of the whole word at each step.

    The time grows with the square of the length, but this is the fastest way for short words.
    Changes `symbols`.
    """
    ids = [byte_ids()[symbol] for symbol in symbols]
    unranked = len(ranks)
    found = [ranks.get(f"{first} {second}", unranked) for first, second in pairwise(symbols)]
    while found and (best := min(found)) < unranked:
        i = found.index(best)
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
        ids[i : i + 2] = [BYTE_TOKENS + best]
        del found[i]
        # The two pairs that hold the new symbol have other ranks now.
        for left in range(max(i - 1, 0), min(i + 1, len(found))):
            found[left] = ranks.get(f"{symbols[left]} {symbols[left + 1]}", unranked)
    return ids


def merge_by_heap(symbols: list[str], ranks: Mapping[str, int]) -> list[int]:
    """Merge a word as `merge_word` says, in a time that grows nearly as its length does.

    A heap gives the pairs by rank, then by place. Changes `symbols`.
    """
    word = _LinkedWord(symbols, ranks)
    size = len(symbols)
    # One number for rank and place compares faster than a tuple of both.
    heap = [rank * size + place for place, rank in enumerate(word.pair_ranks) if rank < len(ranks)]
    heapify(heap)
    while heap:
        rank, place = divmod(heappop(heap), size)
        if word.pair_ranks[place] != rank:
            continue  # one of this pair was joined to its other neighbor since
        for changed in word.join(place):
            if word.pair_ranks[changed] < len(ranks):
                heappush(heap, word.pair_ranks[changed] * size + changed)
    return [token for token in word.ids if token != _JOINED]


class _LinkedWord:
    """Hold the symbols of a word as a linked list, so that joining two of them moves no other.

    A joined symbol keeps the place of its first letter. A pair has the place of its first symbol.

    Attributes:
        ids: the token of each place.
        pair_ranks: the rank of the pair at each place; `len(ranks)` if it is not in the table.
    """

    def __init__(self, symbols: list[str], ranks: Mapping[str, int]) -> None:
        self.symbols = symbols
        self.ranks = ranks
        self.end = len(symbols)
        self.ids = [byte_ids()[symbol] for symbol in symbols]
        self.following = list(range(1, self.end + 1))
        self.previous = list(range(-1, self.end - 1))
        self.pair_ranks = [self._rank_at(place) for place in range(self.end)]

    def _rank_at(self, place: int) -> int:
        right = self.following[place]
        if right == self.end:
            return len(self.ranks)
        return self.ranks.get(f"{self.symbols[place]} {self.symbols[right]}", len(self.ranks))

    def join(self, place: int) -> list[int]:
        """Join the pair at a place, and return the places of the pairs that hold the new symbol."""
        right = self.following[place]
        self.symbols[place] += self.symbols[right]
        self.ids[place] = BYTE_TOKENS + self.pair_ranks[place]
        self.ids[right] = _JOINED
        self.pair_ranks[right] = len(self.ranks)
        self.following[place] = self.following[right]
        if self.following[place] < self.end:
            self.previous[self.following[place]] = place
        changed = [left for left in (self.previous[place], place) if left >= 0]
        for left in changed:
            self.pair_ranks[left] = self._rank_at(left)
        return changed


def check_merges(merges: object) -> tuple[str, ...]:
    """Return a table of merges; raise `TokenizerError` unless each joins two earlier symbols.

    Args:
        merges: lines "a b", in rank order. A first one that starts with "#version" is left out.
    """
    try:
        lines: list[object] = list(cast("Iterable[object]", merges))
    except TypeError as error:
        raise TokenizerError(
            f"merges must be lines 'a b', not {type(merges).__name__} {merges!r:.60}"
        ) from error
    if lines and isinstance(lines[0], str) and lines[0].startswith("#version"):
        del lines[0]
    known = set(byte_ids())
    checked: list[str] = []
    for number, line in enumerate(lines):
        first, _, second = line.partition(" ") if isinstance(line, str) else ("", "", "")
        if first not in known or second not in known or first + second in known:
            raise TokenizerError(
                f"merge {number}, {line!r:.60}, must join two earlier symbols to a new one, "
                "as 'a b'"
            )
        known.add(first + second)
        checked.append(f"{first} {second}")
    return tuple(checked)
