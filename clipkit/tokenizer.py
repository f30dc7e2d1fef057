"""CLIP's byte-pair tokenizer: text -> (N, L) int64 token ids, id for id as OpenAI's.

Text is mended (ftfy), HTML-unescaped twice, collapsed at whitespace, lower-cased, and cut into words by one regular
expression; each word's UTF-8 bytes are merged by a ranked table (Sennrich et al. 2016; Radford et al. 2019, 2021). The
vocabulary is the 256 bytes, the same 256 ending a word, one token per merge, then start and end of text.

Deliberate differences from OpenAI's package:

- `<|startoftext|>` and `<|endoftext|>` inside a text are ordinary characters, so that no caption can cut itself short.
  `allow_special=True` reads them as the tokens, as OpenAI does.
- A text that is too long is named in the error, with its count and the remedy. Ids are int64, not int32.
- `decode` ends at the end-of-text token, leaves out the start, and has no trailing space.

Whatever follows the end-of-text token, here zeros, has no influence on features: the text tower is causal.
"""

import functools
import gzip
import html
from collections.abc import Iterable, Sequence
from importlib import resources
from itertools import chain, pairwise
from operator import index
from typing import Any

import numpy as np
import torch

from clipkit.errors import TokenizerError

START, END = "<|startoftext|>", "<|endoftext|>"
CACHE_WORDS = 1 << 16  # cached words; a cleared cache refills in a blink
CACHE_CHARACTERS = 64  # longer words are rare and not worth keeping
SEPARATOR = "\n"  # stands between texts; cleaning leaves none inside them


@functools.cache
def default_merges() -> tuple[str, ...]:
    """The 48,894 merges "a b" of every published plain CLIP, in rank order."""
    data = resources.files("clipkit").joinpath("assets/merges.txt.gz").read_bytes()
    return tuple(gzip.decompress(data).decode("utf-8").split("\n"))


@functools.cache
def _letters() -> dict[int, str]:
    """byte -> the printable character that stands for it, in the order of the ids (GPT-2's convention)."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = sorted(set(range(256)) - set(printable))
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + n) for n, byte in enumerate(others)
    }


@functools.cache
def _byte_ids() -> dict[str, int]:
    """The first 512 symbols with their ids: each byte inside a word, then each byte at the end of one."""
    symbols = [*_letters().values(), *(letter + "</w>" for letter in _letters().values())]
    return {symbol: i for i, symbol in enumerate(symbols)}


@functools.cache
def _pattern(allow_special: bool) -> Any:
    import regex

    special = r"<\|startoftext\|>|<\|endoftext\|>|" if allow_special else ""
    return regex.compile(
        special + r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", regex.IGNORECASE
    )


def _clean(text: str) -> str:
    """Mend and unescape; only single spaces remain as whitespace, except that plain ASCII keeps runs of them."""
    if _is_plain(text):
        return text
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def _is_plain(text: str) -> bool:
    """Whether cleaning cannot change any word of `text`: printable ASCII (so no tab or line break) without entities."""
    return text.isascii() and text.isprintable() and "&" not in text


class _Words(dict[str, tuple[int, ...]]):
    """Ids of each word between spaces, computed on first use. No rule of the pattern looks across a space."""

    def __init__(self, tokenizer: "Tokenizer", allow_special: bool) -> None:
        super().__init__()
        self.tokenizer, self.allow_special = tokenizer, allow_special

    def __missing__(self, word: str) -> tuple[int, ...]:
        ids = self.tokenizer._encode_word(word, self.allow_special)
        if len(self) >= CACHE_WORDS:
            self.clear()
        if len(word) <= CACHE_CHARACTERS:
            self[word] = ids
        return ids


class Tokenizer:
    """Byte-pair tokenizer with its table.

    Args:
        merges: lines "a b", in rank order; None is CLIP's own table. A "#version" header is skipped.
        context_length: the default row length, in tokens.

    Attributes:
        vocab_size: 512 + merges + 2; all ids are below it.
        sot_token, eot_token: ids of start and end of text, the two highest.
    """

    def __init__(self, merges: Iterable[str] | None = None, context_length: int = 77) -> None:
        self.context_length = _check_length(context_length)
        self.merges = default_merges() if merges is None else _check_merges(merges)
        self.vocab_size = 512 + len(self.merges) + 2
        self.sot_token, self.eot_token = self.vocab_size - 2, self.vocab_size - 1
        self._ranks = dict(zip(self.merges, range(len(self.merges)), strict=True))
        self._words = {allow: _Words(self, allow) for allow in (False, True)}

    @functools.cached_property
    def _symbols(self) -> list[str]:
        """id -> symbol; only `decode` needs it."""
        return [*_byte_ids()] + [merge.replace(" ", "") for merge in self.merges]

    @property
    def is_default(self) -> bool:
        """Whether the table is CLIP's own."""
        return self.merges == default_merges()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tokenizer):
            return NotImplemented
        return self.merges == other.merges and self.context_length == other.context_length

    def __hash__(self) -> int:
        return hash((self.vocab_size, self.context_length))

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer, (None if self.is_default else self.merges, self.context_length)

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, context_length={self.context_length})"

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Ids of `text`, without start and end. Raises `TokenizerError` if it is no string."""
        _check_texts([text])
        words = self._words[allow_special]
        return list(chain.from_iterable(map(words.__getitem__, _clean(text).lower().split(" "))))

    def count(self, text: str) -> int:
        """Tokens of `text`, start and end included: what must not exceed `context_length`."""
        return len(self.encode(text)) + 2

    def decode(self, ids: Iterable[int] | torch.Tensor | np.ndarray) -> str:
        """Text of one row of ids (integers, or a 1-d integer tensor or array), lower case, words parted by one space.

        Bytes that are no UTF-8 become U+FFFD. Raises `TokenizerError` for an id outside the vocabulary or no integer.
        """
        symbols = []
        for value in ids:
            try:
                token = index(value)
            except (TypeError, ValueError) as error:
                raise TokenizerError(
                    f"decode needs one row of integer ids; it met {value!r:.60}"
                ) from error
            if not 0 <= token < self.vocab_size:
                raise TokenizerError(
                    f"token id {token} is outside the vocabulary, 0 to {self.vocab_size - 1}"
                )
            if token == self.eot_token:
                break
            if token != self.sot_token:
                symbols.append(self._symbols[token].replace("</w>", " "))
        bytes_of = {letter: byte for byte, letter in _letters().items()} | {" ": ord(" ")}
        return (
            bytes(bytes_of[letter] for letter in "".join(symbols))
            .decode("utf-8", errors="replace")
            .rstrip(" ")
        )

    def __call__(
        self,
        texts: str | Sequence[str],
        context_length: int | None = None,
        truncate: bool = False,
        allow_special: bool = False,
    ) -> torch.Tensor:
        """Rows of start, ids, end, then zeros: (N, L) int64, where one string is N = 1.

        Args:
            context_length: L in tokens; None is the tokenizer's own.
            truncate: cut what is too long, with the end of text as the last token.
            allow_special: read "<|startoftext|>" and "<|endoftext|>" in a text as the tokens.

        Raises:
            TokenizerError: a text is no string, or too long and `truncate` is not set.
        """
        length = self.context_length if context_length is None else _check_length(context_length)
        rows = [texts] if isinstance(texts, str) else _check_texts(texts)
        if not rows:
            return torch.zeros((0, length), dtype=torch.int64)
        cleaned = rows if _is_plain(" ".join(rows)) else [_clean(text) for text in rows]

        # All texts are looked up as one stream of words, a separator before, between and after them. It becomes -1, the
        # end of the text before it (told from an end that the text itself may hold), and the start of the next text.
        stream = f" {SEPARATOR} ".join(cleaned).lower()
        words = f"{SEPARATOR} {stream} {SEPARATOR}".split(" ")
        flat = np.fromiter(
            chain.from_iterable(map(self._words[allow_special].__getitem__, words)), np.int64
        )
        ends = np.flatnonzero(flat < 0)  # (N + 1,)
        flat[ends] = self.eot_token
        flat, starts, counts = flat[1:-1], ends[:-1], np.diff(ends)  # (sum of counts,), (N,), (N,)

        too_long = np.flatnonzero(counts > length)
        if len(too_long) and not truncate:
            text = rows[too_long[0]]
            shown = text if len(text) <= 60 else text[:57] + "..."
            raise TokenizerError(
                f"text has {counts[too_long[0]]} tokens, more than context_length={length}: "
                f"{shown!r}; shorten it, or pass truncate=True to cut it"
            )
        row_starts = np.arange(len(rows)) * length
        places = np.arange(len(flat)) + np.repeat(row_starts - starts, counts)
        if len(too_long):
            kept = places < np.repeat(row_starts + length, counts)
            flat, places = flat[kept], places[kept]
        tokens = np.zeros((len(rows), length), np.int64)
        tokens.reshape(-1)[places] = flat
        tokens[too_long, -1] = self.eot_token
        return torch.from_numpy(tokens)

    def _encode_word(self, word: str, allow_special: bool) -> tuple[int, ...]:
        """Ids of one cleaned word between spaces; the separator gives -1 and the start of the next text."""
        if word == SEPARATOR:
            return -1, self.sot_token
        if word.isascii() and word.isalpha():  # most words; the pattern would give them back whole
            return tuple(self._merge(word))
        letters, ids = _letters(), []
        for piece in _pattern(allow_special).findall(word):
            if piece in (START, END):  # only the pattern with the special tokens gives them whole
                ids.append(self.sot_token if piece == START else self.eot_token)
            else:
                ids += self._merge("".join([letters[byte] for byte in piece.encode("utf-8")]))
        return tuple(ids)

    def _merge(self, letters: str) -> list[int]:
        """Ids of one word after joining the earliest-ranked pair, leftmost first, until no pair is in the table.

        One pair at a time equals OpenAI's joining of all its occurrences, as pairs with the new symbol rank later.
        """
        symbols = [*letters[:-1], letters[-1] + "</w>"]
        ids = [_byte_ids()[symbol] for symbol in symbols]
        ranks, last = self._ranks, len(self._ranks)
        found = [ranks.get(f"{first} {second}", last) for first, second in pairwise(symbols)]
        while found and (best := min(found)) < last:
            i = found.index(best)
            symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
            ids[i : i + 2] = [512 + best]
            del found[i]
            for left in range(
                max(i - 1, 0), min(i + 1, len(found))
            ):  # the pairs with the new symbol
                found[left] = ranks.get(f"{symbols[left]} {symbols[left + 1]}", last)
        return ids


_default = functools.cache(Tokenizer)  # built at first use


def tokenize(
    texts: str | Sequence[str], context_length: int = 77, truncate: bool = False
) -> torch.Tensor:
    """Token ids with CLIP's own table, as OpenAI's `clip.tokenize`: (N, L) int64, zeros after the end of text.

    Raises `TokenizerError` if a text is longer than `context_length` tokens and `truncate` is not set.
    """
    return _default()(texts, context_length, truncate)


def _check_texts(texts: Any) -> list[str]:
    if isinstance(texts, bytes) or not isinstance(texts, Iterable):
        raise TokenizerError(
            f"texts must be a string or strings, not {type(texts).__name__} {texts!r:.60}"
        )
    texts = list(texts)
    for text in texts:
        if not isinstance(text, str):
            raise TokenizerError(f"a text must be a string, not {type(text).__name__} {text!r:.60}")
    return texts


def _check_length(length: Any) -> int:
    if not isinstance(length, int) or length < 2:
        raise TokenizerError(
            f"context_length must be an integer of at least 2 (start and end of text), not {length!r}"
        )
    return length


def _check_merges(merges: Iterable[str]) -> tuple[str, ...]:
    """Every merge must join two symbols that exist by then."""
    merges = list(merges)
    if merges and merges[0].startswith("#version"):
        del merges[0]
    known = set(_byte_ids())
    for number, merge in enumerate(merges):
        first, _, second = merge.partition(" ")
        if first not in known or second not in known or first + second in known:
            raise TokenizerError(
                f"merge {number}, {merge!r}, must join two earlier symbols to a new one, as 'a b'"
            )
        known.add(first + second)
    return tuple(merges)
