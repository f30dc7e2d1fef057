"""Name the tokens of a text, and put them together to words."""

from collections.abc import Iterable, Sequence

from clipkit.tokenizer import Tokenizer


def token_strings(tokenizer: Tokenizer, ids: Iterable[int]) -> tuple[list[str], list[bool]]:
    """Return the string of each token, and whether a word ends with it.

    Args:
        tokenizer: the model's own.
        ids: of one text, without start and end.

    Returns:
        Two lists as long as `ids`. A token with a part of a letter alone is U+FFFD.

    Example:
        >>> token_strings(Tokenizer(), Tokenizer().encode("clipkit"))
        (['clip', 'kit'], [False, True])
    """
    strings: list[str] = []
    ends_word: list[bool] = []
    for token in ids:
        string = tokenizer.decode([token])
        strings.append(string)
        # Between words the tokenizer puts a space.
        ends_word.append(tokenizer.decode([token, token]) == f"{string} {string}")
    return strings, ends_word


def join_words(
    tokens: Sequence[str], values: Sequence[float], ends_word: Sequence[bool]
) -> list[tuple[str, float]]:
    """Return the words that tokens make up, each with the sum of its tokens' values.

    Args:
        tokens, ends_word: from `token_strings`.
        values: one for each token.

    Example:
        >>> join_words(["a", "clip", "kit"], [1.0, 2.0, 3.0], [True, False, True])
        [('a', 1.0), ('clipkit', 5.0)]
    """
    words: list[tuple[str, float]] = []
    word, total = "", 0.0
    for token, value, is_last in zip(tokens, values, ends_word, strict=True):
        word, total = word + token, total + value
        if is_last:
            words.append((word, total))
            word, total = "", 0.0
    if word:  # cut off inside of a word
        words.append((word, total))
    return words
