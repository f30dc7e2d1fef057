"""Clean texts, and cut them into words and into the tokens that were added to a vocabulary."""

import functools
import html
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from clipkit.errors import TokenizerError

if TYPE_CHECKING:
    import regex

START, END = "<|startoftext|>", "<|endoftext|>"

# An ampersand that was escaped again and again. ftfy takes all of it back, one level at a time.
_AMPERSANDS = re.compile(r"&(?:(?:amp|AMP|#0{0,8}38|#[xX]0{0,8}26);){2,}")


@functools.cache
def word_pattern(allow_special: bool) -> "regex.Pattern[str]":
    """Return the expression that cuts a text into words (openai/CLIP, simple_tokenizer.py)."""
    import regex

    special = r"<\|startoftext\|>|<\|endoftext\|>|" if allow_special else ""
    words = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
    return regex.compile(special + words, regex.IGNORECASE)


def is_plain(text: str) -> bool:
    """Return whether cleaning cannot change any word of `text`.

    That is so for printable ASCII, which has no tab or line break, without HTML entities.
    """
    return text.isascii() and text.isprintable() and "&" not in text


def clean(text: str) -> str:
    """Mend and unescape `text`, and collapse its whitespace to single spaces.

    Plain text comes back as it is. It may hold runs of spaces, which cut words as one space does.
    """
    if is_plain(text):
        return text
    import ftfy

    mended = ftfy.fix_text(_AMPERSANDS.sub("&amp;", text) if "<" not in text else text)
    return " ".join(html.unescape(html.unescape(mended)).split())


def check_texts(texts: object) -> list[str]:
    """Return many texts as a list, in the order in which they are iterated.

    Args:
        texts: a list, a tuple, a set, a generator, a column of a table or an array of strings. A
            single string is many of one letter each, so callers decide about it before.

    Raises:
        TokenizerError: for anything else. The message has the position of what is no string.
    """
    kind = type(texts).__name__
    try:
        if isinstance(texts, bytes) or isinstance(texts, Mapping) or hasattr(texts, "columns"):
            raise TypeError("more or other than texts")
        found: list[object] = list(cast("Iterable[object]", texts))
    except TypeError as error:
        raise TokenizerError(
            f"texts must be a string or strings, not {kind} {texts!r:.60}. Of a "
            "dict pass its keys() or values(), of a table one column"
        ) from error
    strings = [text for text in found if isinstance(text, str)]
    if len(strings) < len(found):
        position = next(i for i, text in enumerate(found) if not isinstance(text, str))
        wrong = found[position]
        raise TokenizerError(
            f"a text must be a string, not {type(wrong).__name__} {wrong!r:.60}, at position "
            f"{position}"
        )
    return strings


class AddedTokens:
    """Find the tokens that were added to a vocabulary in texts.

    Of several that begin at one place the longest counts. Tokens of `exact` are looked for in a
    text as it is. The others are looked for in the clean text, in upper and lower case alike.

    Args:
        ids: the id of each token, by its text.
        exact: those of the tokens that count in their own case only.
        first: the lowest id that a token may have. The ids below it are those of the table.

    Attributes:
        ids, exact: as above.

    Raises:
        TokenizerError: if a text or an id is no text or id of its own.
    """

    def __init__(self, ids: Mapping[str, int], exact: Collection[str], first: int) -> None:
        self.ids = _check_ids(ids, first)
        self.exact = _check_exact(exact, self.ids)
        self._exact = {text: token for text, token in self.ids.items() if text in self.exact}
        others = [text for text in self.ids if text not in self.exact]
        self._others = {_fold(text): self.ids[text] for text in others}
        if len(self._others) < len(others):
            raise TokenizerError(
                f"two of the added tokens {sorted(others)!r:.200} differ in case or spaces alone: "
                "name them in exact_tokens"
            )
        self._find_exact = _alternatives(self._exact)
        self._find_others = _alternatives(self._others)

    def split(self, text: str) -> Iterator[str | int]:
        """Yield the parts of a text in their order: ids of added tokens, and clean text between."""
        for number, part in enumerate(self._find_exact.split(text)):
            if number % 2:
                yield self._exact[part]
                continue
            for inner_number, inner in enumerate(self._find_others.split(_fold(clean(part)))):
                yield self._others[inner] if inner_number % 2 else inner


def _fold(text: str) -> str:
    """Return a text in lower case, with one space where it has several."""
    return " ".join(text.lower().split())


def _alternatives(tokens: Collection[str]) -> re.Pattern[str]:
    """Return an expression for any of the tokens. At one place it finds the longest."""
    if not tokens:
        return re.compile("((?!))")  # it is found nowhere
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")


def _check_ids(ids: Any, first: int) -> dict[str, int]:
    """Return the ids by text. Raise `TokenizerError` for what cannot be added to a vocabulary."""
    if not isinstance(ids, Mapping):
        raise TokenizerError(
            f"added_tokens must map texts to ids, as {{'<cat>': {first}}}, not {ids!r:.60}"
        )
    checked = dict(cast("Mapping[Any, Any]", ids))
    for text, token in checked.items():
        if not isinstance(text, str) or not text.strip() or text in (START, END):
            raise TokenizerError(f"an added token must be a text of its own, not {text!r:.60}")
        if not isinstance(token, int) or isinstance(token, bool) or token < first:
            raise TokenizerError(
                f"the id of the added token {text!r:.60} must be an integer from {first} on, which "
                f"the table of merges leaves free, not {token!r:.60}"
            )
    if len(set(checked.values())) < len(checked):
        raise TokenizerError(f"two added tokens have one id: {checked!r:.200}")
    return checked


def _check_exact(exact: Any, ids: Mapping[str, int]) -> frozenset[str]:
    """Return the texts. Raise `TokenizerError` if one is no added token."""
    if isinstance(exact, str) or not isinstance(exact, Collection):
        raise TokenizerError(f"exact_tokens must be a list of added tokens, not {exact!r:.60}")
    for text in cast("Collection[Any]", exact):
        if not isinstance(text, str) or text not in ids:
            raise TokenizerError(f"exact_tokens has {text!r:.60}, which is not in added_tokens")
    return frozenset(cast("Collection[str]", exact))
