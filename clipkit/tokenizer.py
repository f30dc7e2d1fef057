"""CLIP's byte-pair tokenizer: text -> (N, L) int64 token ids, id for id as OpenAI's.

A text passes through these steps:

1. It is mended by ftfy, HTML-unescaped twice, and lower-cased, and its whitespace is collapsed.
2. One regular expression cuts it into words.
3. The UTF-8 bytes of each word are merged by a ranked table (Sennrich et al. 2016; Radford et al.
   2019, 2021).

The vocabulary holds the 256 bytes, the same 256 bytes at the end of a word, one token per merge,
then start and end of text.

Differences from OpenAI's package, all on purpose:

- `<|startoftext|>` and `<|endoftext|>` inside a text are ordinary characters, so that no caption
  can cut itself short. `allow_special=True` reads them as the tokens, as OpenAI does.
- The error for a text that is too long names the text, its count of tokens and the remedy.
- Ids are int64, not int32.
- `decode` ends at the end-of-text token, leaves out the start, and has no trailing space.

Rows are filled with zeros after the end-of-text token. They have no influence on features, because
the text tower is causal.
"""

import functools
import gzip
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from importlib import resources
from itertools import chain
from operator import index
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from clipkit.byte_pairs import (
    BYTE_TOKENS,
    END_OF_WORD,
    byte_ids,
    check_merges,
    letter_of_byte,
    merge_known_word,
    merge_word,
)
from clipkit.errors import TokenizerError
from clipkit.words import END, START, AddedTokens, check_texts, clean, is_plain, word_pattern

CACHE_WORDS = 1 << 16  # the cache is emptied when it holds so many words; it soon fills again
CACHE_CHARACTERS = 64  # longer words are rare and not worth keeping
SEPARATOR = "\n"  # stands between texts; cleaning leaves none inside them
LONGEST_ROW = 1 << 16  # tokens; a mistaken length would fill the memory with zeros


@functools.cache
def default_merges() -> tuple[str, ...]:
    """Return the 48,894 merges "a b" of every published plain CLIP, in rank order."""
    data = resources.files("clipkit").joinpath("assets/merges.txt.gz").read_bytes()
    return tuple(gzip.decompress(data).decode("utf-8").split("\n"))


class _Words(dict[str, tuple[int, ...]]):
    """Hold the ids of each word between spaces, computed on first use.

    Words can be encoded one by one, because no rule of the pattern looks across a space.
    """

    def __init__(self, encode: Callable[[str], tuple[int, ...]]) -> None:
        super().__init__()
        self.encode = encode

    def __missing__(self, word: str) -> tuple[int, ...]:
        ids = self.encode(word)
        if len(self) >= CACHE_WORDS:
            self.clear()
        if len(word) <= CACHE_CHARACTERS:
            self[word] = ids
        return ids


class Tokenizer:
    """Turn texts into token ids and back, with one table of merges.

    Args:
        merges: lines "a b", in rank order; None takes CLIP's own table. A first line that starts
            with "#version" is skipped.
        context_length: the default length of a row, in tokens.
        added_tokens: texts that are one token each, such as "<cat>", with their ids. These come
            after those of the table. The longest one counts. By default capitals do not matter.
        exact_tokens: those of the added tokens that are found in their own case only.

    Attributes:
        merges: the table, as a tuple of lines.
        vocab_size: 512 + merges + 2, or one above the highest id of an added token.
        sot_token, eot_token: the ids of start and end of text, the two highest of the table.
        added_tokens, exact_tokens: as above.

    Raises:
        TokenizerError: if a merge does not join two earlier symbols to a new one, the context
            length is no integer of at least 2, or an added token is no text or id of its own.

    Example:
        >>> tokenizer = Tokenizer(context_length=8)
        >>> tokenizer("a photo of a dog").tolist()
        [[49406, 320, 1125, 539, 320, 1929, 49407, 0]]
        >>> tokenizer.decode([320, 1125, 539, 320, 1929])
        'a photo of a dog'
    """

    def __init__(
        self,
        merges: Iterable[str] | None = None,
        context_length: int = 77,
        added_tokens: Mapping[str, int] | None = None,
        exact_tokens: Collection[str] = (),
    ) -> None:
        self.context_length = _check_length(context_length)
        self.merges = default_merges() if merges is None else check_merges(merges)
        self.sot_token = BYTE_TOKENS + len(self.merges)
        self.eot_token = self.sot_token + 1
        self._added = AddedTokens(added_tokens or {}, exact_tokens, self.eot_token + 1)
        self.added_tokens = self._added.ids
        self.exact_tokens = self._added.exact
        self.vocab_size = max([self.eot_token, *self.added_tokens.values()]) + 1
        self._ranks = dict(zip(self.merges, range(len(self.merges)), strict=True))
        self._merge = merge_known_word if self.merges == default_merges() else merge_word
        self._words = {
            allow: _Words(functools.partial(self._encode_word, allow_special=allow))
            for allow in (False, True)
        }

    @functools.cached_property
    def _symbols(self) -> list[str]:
        """List the symbol of each id of the table. Only `decode` needs it."""
        return [*byte_ids(), *(merge.replace(" ", "") for merge in self.merges)]

    @functools.cached_property
    def _added_symbols(self) -> dict[int, str]:
        """Map the id of each added token to the letters of its bytes. Only `decode` needs it."""
        letters = letter_of_byte()
        return {
            token: "".join([letters[byte] for byte in text.encode("utf-8", "replace")])
            + END_OF_WORD
            for text, token in self.added_tokens.items()
        }

    @property
    def is_default(self) -> bool:
        """Return whether the table is CLIP's own, and nothing was added to it."""
        return not self.added_tokens and self.merges == default_merges()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tokenizer):
            return NotImplemented
        return self.__reduce__() == other.__reduce__()

    def __hash__(self) -> int:
        return hash((self.vocab_size, self.context_length))

    def __reduce__(self) -> tuple[Any, ...]:
        # The published table stays at home, so that a pickled tokenizer is small.
        merges = None if self.merges == default_merges() else self.merges
        return Tokenizer, (merges, self.context_length, self.added_tokens, self.exact_tokens)

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, context_length={self.context_length})"

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Return the ids of `text`, without start and end.

        Args:
            text: one text of any length.
            allow_special: read "<|startoftext|>" and "<|endoftext|>" as the tokens.

        Raises:
            TokenizerError: if it is no string.
        """
        check_texts([text])
        if not self.added_tokens:
            return self._encode_words(clean(text).lower(), allow_special)
        ids: list[int] = []
        for part in self._added.split(text):
            ids += [part] if isinstance(part, int) else self._encode_words(part, allow_special)
        return ids

    def _encode_words(self, text: str, allow_special: bool) -> list[int]:
        """Return the ids of a clean text."""
        found = map(self._words[allow_special].__getitem__, text.split(" "))
        return list(chain.from_iterable(found))

    def count(self, text: str) -> int:
        """Return the number of tokens of `text`, start and end included.

        A text fits into a row if this is at most `context_length`.
        """
        return len(self.encode(text)) + 2

    def decode(self, ids: "Iterable[int] | torch.Tensor | npt.NDArray[Any]") -> str:
        """Return the text of one row of ids, in lower case, with one space between words.

        Args:
            ids: (L,) integers. They are read up to the end-of-text token; the start is left out.

        Returns:
            The text. Bytes that are no UTF-8 become U+FFFD.

        Raises:
            TokenizerError: if an id is no integer, or is outside of the vocabulary.
        """
        symbols: list[str] = []
        for value in self._as_row(ids):
            token = self._check_id(value)
            if token == self.eot_token:
                break
            if token != self.sot_token:
                symbols.append(self._added_symbols.get(token) or self._symbols[token])
        letters = "".join(symbols).replace(END_OF_WORD, " ")
        byte_of = {letter: byte for byte, letter in letter_of_byte().items()} | {" ": ord(" ")}
        text = bytes(byte_of[letter] for letter in letters).decode("utf-8", errors="replace")
        return text.rstrip(" ")

    def _as_row(self, ids: object) -> list[object]:
        """Return what is iterated of a row of ids."""
        try:
            return list(cast("Iterable[object]", ids))
        except TypeError as error:
            raise TokenizerError(
                f"decode needs one row of integer ids, not {type(ids).__name__} {ids!r:.60}"
            ) from error

    def _check_id(self, value: Any) -> int:
        """Return a token id as an integer."""
        try:
            token = index(value)
        except (TypeError, ValueError) as error:
            raise TokenizerError(
                f"decode needs one row of integer ids; it met {value!r:.60}"
            ) from error
        if not 0 <= token <= self.eot_token and token not in self._added_symbols:
            raise TokenizerError(
                f"token id {token} is outside the vocabulary, 0 to {self.vocab_size - 1}, "
                "or has no text in it"
            )
        return token

    def __call__(
        self,
        texts: str | Iterable[str],
        context_length: int | None = None,
        truncate: bool = False,
        allow_special: bool = False,
    ) -> torch.Tensor:
        """Return rows of token ids: start, the ids of a text, end, then zeros.

        Args:
            texts: N strings, or one string, which makes one row.
            context_length: L in tokens; None takes the tokenizer's own.
            truncate: cut a text that is too long, with the end of text as the last token.
            allow_special: read "<|startoftext|>" and "<|endoftext|>" in a text as the tokens.

        Returns:
            (N, L) int64, on the CPU.

        Raises:
            TokenizerError: if a text is no string, or is too long and `truncate` is not set.
        """
        length = self.context_length if context_length is None else _check_length(context_length)
        rows = [texts] if isinstance(texts, str) else check_texts(texts)
        if not rows:
            return torch.zeros((0, length), dtype=torch.int64, device="cpu")
        ids, starts, counts = self._encode_rows(rows, allow_special)
        too_long = np.flatnonzero(counts > length)
        if len(too_long) and not truncate:
            first = int(too_long[0])
            raise _overflow(rows[first], int(counts[first]), length)
        tokens = _fill(ids, starts, counts, length)
        tokens[too_long, -1] = self.eot_token
        return torch.from_numpy(tokens)

    def _encode_rows(
        self, rows: list[str], allow_special: bool
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the ids of all rows one after another, and where each starts and how many it has.

        All texts are looked up as one stream of words, which is faster than one by one. A separator
        stands before, between and after them.

        Returns:
            ids (sum of counts,), starts (N,), counts (N,). Each row has its start and end of text.
        """
        if self.added_tokens:
            return self._encode_rows_apart(rows, allow_special)
        cleaned = rows if is_plain(" ".join(rows)) else [clean(text) for text in rows]
        stream = f" {SEPARATOR} ".join(cleaned).lower()
        words = f"{SEPARATOR} {stream} {SEPARATOR}".split(" ")
        found = map(self._words[allow_special].__getitem__, words)
        ids = np.fromiter(chain.from_iterable(found), np.int64)
        # A separator gave -1 and the start of the next text. The -1 ends the text before it. It is
        # not the end-of-text id yet, because `allow_special` lets a text hold that id itself.
        ends = np.flatnonzero(ids < 0)  # (N + 1,)
        ids[ends] = self.eot_token
        # The first -1 ends nothing, and the last start begins nothing: both are cut off.
        return ids[1:-1], ends[:-1], np.diff(ends)

    def _encode_rows_apart(
        self, rows: list[str], allow_special: bool
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the same as `_encode_rows`, for texts that may hold added tokens."""
        found = [
            [self.sot_token, *self.encode(text, allow_special), self.eot_token] for text in rows
        ]
        counts = np.array([len(ids) for ids in found], np.int64)
        return np.array([*chain(*found)], np.int64), np.cumsum(counts) - counts, counts

    def _encode_word(self, word: str, allow_special: bool) -> tuple[int, ...]:
        """Return the ids of one cleaned word between spaces.

        The separator gives -1 and the start of the next text.
        """
        if word == SEPARATOR:
            return -1, self.sot_token
        # Most words are of letters alone. The pattern would give them back whole.
        if word.isascii() and word.isalpha():
            return tuple(self._merge(word, self._ranks))
        letters = letter_of_byte()
        special = {START: self.sot_token, END: self.eot_token} if allow_special else {}
        ids: list[int] = []
        for piece in cast("list[str]", word_pattern(allow_special).findall(word)):
            if piece in special:
                ids.append(special[piece])
            else:
                spelled = "".join([letters[byte] for byte in piece.encode("utf-8")])
                ids += self._merge(spelled, self._ranks)
        return tuple(ids)


def _fill(
    ids: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    length: int,
) -> npt.NDArray[np.int64]:
    """Spread the ids of all rows over a table (N, length) of zeros; cut rows that are longer."""
    row_starts = np.arange(len(counts)) * length
    places = np.arange(len(ids)) + np.repeat(row_starts - starts, counts)
    if counts.max() > length:
        kept = places < np.repeat(row_starts + length, counts)
        ids, places = ids[kept], places[kept]
    tokens = np.zeros((len(counts), length), np.int64)
    tokens.reshape(-1)[places] = ids  # (N, L) -> (N * L,), a view
    return tokens


_default = functools.cache(Tokenizer)  # built at first use


def tokenize(
    texts: str | Sequence[str], context_length: int = 77, truncate: bool = False
) -> torch.Tensor:
    """Return token ids with CLIP's own table, as OpenAI's `clip.tokenize` does.

    Args:
        texts: N strings, or one string, which makes one row.
        context_length: L in tokens.
        truncate: cut a text that is too long, with the end of text as the last token.

    Returns:
        (N, L) int64, zeros after the end of text.

    Raises:
        TokenizerError: if a text is no string, or is too long and `truncate` is not set.

    Example:
        >>> tokenize(["a dog", "a diagram"], context_length=5).tolist()
        [[49406, 320, 1929, 49407, 0], [49406, 320, 22697, 49407, 0]]
    """
    return _default()(texts, context_length, truncate)


def _overflow(text: str, count: int, length: int) -> TokenizerError:
    """Return the error for a text that is too long."""
    shown = text if len(text) <= 60 else text[:57] + "..."
    return TokenizerError(
        f"text has {count} tokens, more than context_length={length}: "
        f"{shown!r}; shorten it, or pass truncate=True to cut it"
    )


def _check_length(length: Any) -> int:
    """Return a context length, and raise `TokenizerError` unless start and end of text fit."""
    if not isinstance(length, int) or not 2 <= length <= LONGEST_ROW:
        raise TokenizerError(
            "context_length must be an integer of at least 2 (start and end of text) and at most "
            f"{LONGEST_ROW}, not {length!r}"
        )
    return length
