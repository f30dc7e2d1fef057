"""CLIP's tokenizer with the attributes and functions of OpenAI's `simple_tokenizer`.

`clipkit.Tokenizer` gives the same ids, faster. This one does every step through attributes that
programs read and change: the vocabulary, the ranks, the cache and the pattern.
"""

import gzip
import html
from collections.abc import Iterable, Sequence
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path

import ftfy
import regex

from clipkit.byte_pairs import END_OF_WORD, byte_ids, letter_of_byte
from clipkit.checkpoints.hub import OPENAI_CACHE
from clipkit.errors import TokenizerError
from clipkit.files import check_output, replacing
from clipkit.tokenizer import default_merges
from clipkit.words import END, START, word_pattern

MERGES = 48_894  # of the lines in OpenAI's file, those that count, behind one line of version
_FILE = "bpe_simple_vocab_16e6.txt.gz"


@cache
def default_bpe() -> str:
    """Return the path of a file of merges in the form of OpenAI's: a line of version, then merges.

    It is written into the folder of OpenAI's archives when it is first asked for. The tokenizer
    itself does not need it.
    """
    path = Path(OPENAI_CACHE).expanduser() / _FILE
    text = "\n".join(["#version: 0.2", *default_merges(), ""])
    check_output(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_bytes(gzip.compress(text.encode("utf-8"), mtime=0))
    return str(path)


def bytes_to_unicode() -> dict[int, str]:
    """Return the printable character that stands for each byte."""
    return dict(letter_of_byte())


def get_pairs(word: Sequence[str]) -> set[tuple[str, str]]:
    """Return the pairs of neighbors among the symbols of a word."""
    return set(pairwise(word))


def basic_clean(text: str) -> str:
    """Return a text mended by ftfy and unescaped twice, without space around it."""
    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def whitespace_clean(text: str) -> str:
    """Return a text with single spaces, and none around it."""
    return regex.sub(r"\s+", " ", text).strip()


class SimpleTokenizer:
    """Turn texts into token ids and back, one step after another.

    Args:
        bpe_path: a gzipped file in the form of OpenAI's. CLIP's own merges if not given.

    Attributes:
        byte_encoder, byte_decoder: the character of each byte, and back.
        encoder, decoder: the id of each symbol, and back.
        bpe_ranks: the rank of each pair of symbols that is merged.
        cache: what words became, as symbols with spaces between them.
        pat: the expression that cuts a text into words.
    """

    def __init__(self, bpe_path: str | None = None) -> None:
        self.bpe_path = bpe_path
        self.byte_encoder = bytes_to_unicode()
        self.byte_decoder = {letter: byte for byte, letter in self.byte_encoder.items()}
        self.cache = {START: START, END: END}

    # The tables are made when they are first needed, so that an import reads no file.

    @cached_property
    def bpe_ranks(self) -> dict[tuple[str, ...], int]:
        """Return the rank of each pair of symbols that is merged."""
        merges = default_merges() if self.bpe_path is None else _read_merges(self.bpe_path)
        return {tuple(merge.split()): rank for rank, merge in enumerate(merges)}

    @cached_property
    def encoder(self) -> dict[str, int]:
        """Return the id of each symbol."""
        symbols = [*byte_ids(), *map("".join, self.bpe_ranks), START, END]
        return {symbol: token for token, symbol in enumerate(symbols)}

    @cached_property
    def decoder(self) -> dict[int, str]:
        """Return the symbol of each id."""
        return {token: symbol for symbol, token in self.encoder.items()}

    @cached_property
    def pat(self) -> "regex.Pattern[str]":
        """Return the expression that cuts a text into words."""
        return word_pattern(allow_special=True)

    def bpe(self, token: str) -> str:
        """Return the symbols of a word, in the letters of `byte_encoder`, with spaces between."""
        if token in self.cache:
            return self.cache[token]
        symbols = [*token[:-1], token[-1] + END_OF_WORD]
        while len(symbols) > 1:
            best = min(pairwise(symbols), key=self._rank)
            if best not in self.bpe_ranks:
                break
            symbols = _join(symbols, best)
        self.cache[token] = " ".join(symbols)
        return self.cache[token]

    def _rank(self, pair: tuple[str, str]) -> int:
        return self.bpe_ranks.get(pair, len(self.bpe_ranks))

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without start and end."""
        ids: list[int] = []
        for word in regex.findall(self.pat, whitespace_clean(basic_clean(text)).lower()):
            letters = "".join([self.byte_encoder[byte] for byte in word.encode("utf-8")])
            ids += [self.encoder[symbol] for symbol in self.bpe(letters).split(" ")]
        return ids

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of ids, with a space behind each word.

        Raises:
            TokenizerError: for an id that is not in the vocabulary.
        """
        try:
            letters = "".join([self.decoder[int(token)] for token in tokens])
        except KeyError as error:
            raise TokenizerError(
                f"token id {error} is outside the vocabulary, 0 to {len(self.decoder) - 1}"
            ) from error
        text = bytes(self.byte_decoder[letter] for letter in letters)
        return text.decode("utf-8", errors="replace").replace(END_OF_WORD, " ")


def _join(symbols: Sequence[str], pair: tuple[str, str]) -> list[str]:
    """Return symbols with every occurrence of a pair made one, from left to right."""
    joined: list[str] = []
    place = 0
    while place < len(symbols):
        taken = 2 if tuple(symbols[place : place + 2]) == pair else 1
        joined.append("".join(symbols[place : place + taken]))
        place += taken
    return joined


def _read_merges(path: str) -> list[str]:
    """Return the merges of a file in the form of OpenAI's."""
    try:
        lines = gzip.decompress(Path(path).read_bytes()).decode("utf-8").split("\n")
    except (OSError, EOFError, ValueError) as error:
        raise TokenizerError(
            f"{str(path)!r:.300} is no gzipped file of merges ({error}): pass the path of one, or "
            "None for CLIP's own"
        ) from error
    return lines[1 : 1 + MERGES]
