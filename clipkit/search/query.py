"""Read queries: texts, images, and weighted sums of both.

    a cat in jeans
    2 * dog - indoor + holiday/rex.jpg
    "black + white" - "t-shirt - print"

Terms are joined by + and - with a space on either side, so that a t-shirt stays what it is. A
number and * before a term weigh it. A term that ends like the name of an image is its path, and so
is a whole query that is the path of a file. Quotes make a text of whatever is in them.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

from clipkit.data.decode import image_suffixes
from clipkit.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

    # A text, which is parsed; a path or an image; or terms.
    QueryLike: TypeAlias = "str | os.PathLike[str] | Image | Term | Iterable[Term]"

_QUOTED = r'"[^"]*"'
_JOINT = re.compile(rf"({_QUOTED})|(?:^|\s)([+-])(?=\s)")
_WEIGHT = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*\*\s*(?=\S)")
_LEAST_WEIGHT, _MOST_WEIGHT = 1e-5, 1e6


@dataclass(frozen=True)
class Term:
    """Hold one term of a query: a text, or the path of an image or the image itself.

    Example:
        Term("dog", weight=2), Term(Path("rex.jpg")), Term("indoor", weight=-1)
    """

    content: "str | Path | Image"
    weight: float = 1.0


def read_query(query: "QueryLike", root: str | None = None) -> list[Term]:
    """Return the terms of a query.

    Args:
        query: a text with weights and signs; a path or a PIL image; or a term or several.
        root: a folder in which images are looked for, too, if they are not where their paths lead.

    Raises:
        ConfigError: if it is empty, or a part of it is.

    Example:
        >>> read_query("2 * dog - indoor")
        [Term(content='dog', weight=2.0), Term(content='indoor', weight=-1.0)]
    """
    if isinstance(query, str):
        terms = _parse(query, root)
    elif isinstance(query, os.PathLike):
        terms = [Term(Path(query))]
    elif isinstance(query, Term):
        terms = [query]
    elif hasattr(query, "getbands"):
        terms = [Term(cast("Image", query))]
    else:
        terms = list(query) if isinstance(query, Iterable) else []
        if not terms or not all(isinstance(term, Term) for term in terms):
            raise ConfigError(
                f"a query is a text, a path, an image or a list of Terms, not {query!r:.99}"
            )
    for term in terms:
        weight: object = term.weight
        if not isinstance(weight, Real) or not _LEAST_WEIGHT <= abs(float(weight)) <= _MOST_WEIGHT:
            raise ConfigError(
                f"a weight must be from {_LEAST_WEIGHT:.5f} to {_MOST_WEIGHT:,.0f}: {term!r:.99}"
            )
    return [
        replace(term, content=find_image(term.content, root))
        if isinstance(term.content, Path)
        else term
        for term in terms
    ]


def find_image(path: Path, root: str | None) -> Path:
    """Return the path of an image: as it is, or below a folder if it is there and not here."""
    if root is None or os.path.lexists(path):
        return path
    inside = Path(root, path)  # an absolute path stays what it is
    return inside if os.path.isfile(inside) else path


def _parse(query: str, root: str | None) -> list[Term]:
    """Return the terms of a text, or the one image that it is the path of."""
    if _is_image(query) and os.path.isfile(find_image(Path(query), root)):
        return [Term(Path(query))]  # "beach - Copy.jpg" is no difference
    terms: list[Term] = []
    sign, start = "+", 0
    for joint in _JOINT.finditer(query):
        if joint[1] is not None:  # what is quoted stays as it is
            continue
        before = query[start : joint.start()]
        if before.strip():
            terms.append(_term(before, sign, query))
        elif terms or start:
            raise ConfigError(f"there is no term between two signs in the query {query!r:.300}")
        sign, start = joint[2], joint.end()
    terms.append(_term(query[start:], sign, query))
    return terms


def _term(text: str, sign: str, query: str) -> Term:
    """Return the term of a text between two signs."""
    text = text.strip()
    weight = 1.0
    if found := _WEIGHT.match(text):
        weight = float(found[1])
        text = text[found.end() :]
    if not text:
        raise ConfigError(f"a term of the query is empty: {query!r:.300}")
    if sign == "-":
        weight = -weight
    if re.fullmatch(_QUOTED, text):
        if not text[1:-1].strip():
            raise ConfigError(f"the quotes of the query hold no text: {query!r:.300}")
        return Term(text[1:-1], weight)
    return Term(Path(text) if _is_image(text) else text, weight)


def _is_image(text: str) -> bool:
    """Return whether a text ends like the name of an image."""
    suffix = Path(text).suffix.lower()
    return suffix != "" and suffix in image_suffixes()  # Pillow takes a moment to list them
