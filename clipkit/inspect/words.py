"""Name the tokens of a text, and tell which of them make up its words."""

from collections.abc import Sequence

from clipkit.tokenizer import Tokenizer


def token_strings(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Return the string of each token of a text. A part of a letter alone is U+FFFD.

    Args:
        tokenizer: the model's own.
        ids: of one text, without start and end.

    Example:
        >>> token_strings(Tokenizer(), Tokenizer().encode("clipkit"))
        ['clip', 'kit']
    """
    return [tokenizer.decode([token]) for token in ids]


def split_words(tokenizer: Tokenizer, ids: Sequence[int]) -> list[tuple[str, int]]:
    """Return the words of a text, each with the number of its tokens.

    A letter may lie in several tokens, so a word is decoded as a whole. Arguments are those of
    `token_strings`; the last word may be cut off.

    Example:
        >>> split_words(Tokenizer(), Tokenizer().encode("a clipkit"))
        [('a', 1), ('clipkit', 2)]
    """
    words: list[tuple[str, int]] = []
    word: list[int] = []
    for token in ids:
        word.append(token)
        if _ends_word(tokenizer, token):
            words.append((tokenizer.decode(word), len(word)))
            word = []
    if word:
        words.append((tokenizer.decode(word), len(word)))
    return words


def _ends_word(tokenizer: Tokenizer, token: int) -> bool:
    """Return whether a word ends with a token: the tokenizer puts a space behind it."""
    string = tokenizer.decode([token])
    return tokenizer.decode([token, token]) == f"{string} {string}"
