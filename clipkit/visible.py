"""Show control characters, so that no name of a file or a label acts on a terminal."""

import unicodedata

# What must not reach a terminal: control characters, marks that reverse the direction of writing,
# halves of characters, and separators of lines.
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"  # they join the letters of some scripts and the parts of emoji


def visible(text: str, keep: str = "") -> str:
    """Return a text in which control characters are escapes. Letters of all scripts stay.

    Args:
        text: a file's name, a label, or a message with such names in it.
        keep: control characters that stay.

    Example:
        >>> visible("a\\x1b[2Jb.jpg")
        'a\\\\x1b[2Jb.jpg'
    """
    if text.isprintable():
        return text
    return "".join(letter if letter in keep else _visible(letter) for letter in text)


def _visible(letter: str) -> str:
    if letter in _JOINERS or unicodedata.category(letter) not in _HIDDEN:
        return letter
    return letter.encode("unicode_escape").decode("ascii")
