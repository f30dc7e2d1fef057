"""Write names and patterns of names as PostgreSQL takes them.

Its texts hold all names but those with a zero character or a surrogate, which stands for a byte of
a file name that is no UTF-8. Each of these, and the escape itself, is written as the control
character "substitute" and four hexadecimal digits.
"""

import re
from typing import NamedTuple

_ESCAPE = "\x1a"
_ESCAPED = re.compile("[\x00\x1a\ud800-\udfff]")
_ESCAPE_CODE = re.compile(f"{_ESCAPE}([0-9a-f]{{4}})")
_ANY = f"(?:{_ESCAPE}....|.)"  # one character of a name


class Condition(NamedTuple):
    """Hold a condition on names.

    Attributes:
        operator: of SQL.
        pattern: what stands on its right, as a parameter.
    """

    operator: str
    pattern: str


def escape_name(name: str) -> str:
    """Return a name as a text of PostgreSQL."""
    return _ESCAPED.sub(lambda found: f"{_ESCAPE}{ord(found[0]):04x}", name)


def unescape_name(text: str) -> str:
    """Return the name that was written as a text of PostgreSQL."""
    return _ESCAPE_CODE.sub(lambda found: chr(int(found[1], 16)), text)


def condition_of(where: str) -> Condition:
    """Return the condition that names match a pattern as `fnmatch` does, from end to end.

    LIKE, which an index serves where the pattern begins with characters, knows no classes of
    characters, and takes an escaped one for several.
    """
    if "[" in where or "?" in where:
        return Condition("~", _regular_expression(where))
    parts = [re.sub(r"([\\%_])", r"\\\1", escape_name(part)) for part in where.split("*")]
    return Condition("LIKE", "%".join(parts))


def _regular_expression(where: str) -> str:
    """Return an advanced regular expression of PostgreSQL."""
    parts: list[str] = []
    place = 0
    while place < len(where):
        character = where[place]
        end = _end_of_class(where, place) if character == "[" else 0
        if end:
            parts.append(_class_of(where[place + 1 : end]))
            place = end
        elif character == "*":
            parts.append(".*")
        elif character == "?":
            parts.append(_ANY)
        else:
            parts.append("".join(_code(one) for one in escape_name(character)))
        place += 1
    return f"^{''.join(parts)}$"


def _end_of_class(where: str, start: int) -> int:
    """Return the place of the ] that ends a class of characters, or 0 if none does."""
    place = start + 1
    if where[place : place + 1] == "!":
        place += 1
    if where[place : place + 1] == "]":  # the first one is a member
        place += 1
    return max(0, where.find("]", place))


def _class_of(content: str) -> str:
    """Return the expression of one character of a class, such as a-z or !0-9."""
    is_negated = content.startswith("!")
    ranges = _ranges_of(content[1:] if is_negated else content)
    plain = "".join(
        f"{_code(chr(first))}-{_code(chr(last))}" for first, last in _without_escaped(ranges)
    )
    escaped = [code for code in _ESCAPED_CODES if any(low <= code <= high for low, high in ranges)]
    if is_negated:
        others = "|".join(f"{code:04x}" for code in escaped)
        unlike = f"(?!{others})" if others else ""
        return f"(?:{_ESCAPE}{unlike}....|[^{plain}{_ESCAPE}])"
    choices = [f"{_ESCAPE}{code:04x}" for code in escaped]
    if plain:
        choices.append(f"[{plain}]")
    return f"(?:{'|'.join(choices)})" if choices else "(?!)"


_ESCAPED_CODES = (0x00, 0x1A, *range(0xD800, 0xE000))
_PLAIN = ((0x01, 0x19), (0x1B, 0xD7FF), (0xE000, 0x10FFFF))


def _ranges_of(content: str) -> list[tuple[int, int]]:
    """Return the first and last code of each part of a class.

    A part that ends before it begins, such as z-a, is left out.
    """
    ranges: list[tuple[int, int]] = []
    place = 0
    while place < len(content):
        last = place + 2 if content[place + 1 : place + 2] == "-" else place
        if last >= len(content):  # a - at the end stands for itself
            last = place
        if content[place] <= content[last]:
            ranges.append((ord(content[place]), ord(content[last])))
        place = last + 1
    return ranges


def _without_escaped(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the parts of ranges that PostgreSQL's texts can hold."""
    return [
        (max(first, low), min(last, high))
        for first, last in ranges
        for low, high in _PLAIN
        if max(first, low) <= min(last, high)
    ]


def _code(character: str) -> str:
    """Return a character as an expression, whatever it means otherwise."""
    return f"\\U{ord(character):08x}"
