"""Write what was found as a contact sheet: one page that needs no network and no other file."""

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

from clipkit.errors import ConfigError
from clipkit.files import replacing
from clipkit.page import as_html, frame
from clipkit.plurals import number_of, size_in_words
from clipkit.search.results import Duplicates, Result, Results
from clipkit.search.sheet_images import Shown, are_copies, largest_of, look_at
from clipkit.search.sheet_paths import common_folder, link_to, short_name
from clipkit.search.sheet_style import SCRIPT, STYLE

_SIDES = range(16, 2049)  # pixels of a thumbnail
_TILE = 0.75  # the least width of an image on the page, as a share of its thumbnail's side
_LEAST = 120  # pixels of that width; the figures have no room in less

_KEYS = (
    '<p class="keys quiet" id="keys">'
    "<kbd>&larr;</kbd> <kbd>&uarr;</kbd> <kbd>&rarr;</kbd> <kbd>&darr;</kbd> go from image to "
    "image, <kbd>Home</kbd> and <kbd>End</kbd> to the first and the last; <kbd>Enter</kbd> opens "
    "the file, <kbd>c</kbd> copies its path, <kbd>Esc</kbd> leaves the images.</p>"
)


def write_sheet(
    results: Results | list[Duplicates],
    path: str | os.PathLike[str],
    *,
    title: str,
    thumbnail: int = 256,
    total: int | None = None,
) -> None:
    """Write what was found as a page with small copies of the images, which links to their files.

    The page needs no other file and no network. Links to images below its folder are relative, so
    that all can be moved together. The same images give the same bytes.

    Args:
        results: of a search, or groups of images that look alike.
        path: the file, which is replaced if it exists.
        title: of the page, such as the query.
        thumbnail: pixels of the longer side of the copies, at most. One of 256 takes about 15 kB.
        total: how many images were searched, if the page is to tell it.

    Raises:
        ConfigError: if `results` or `title` is something else, or `thumbnail` is out of its range.
        OutputError: if it cannot be written.

    Example:
        results = index.search("a cat in jeans", k=50)
        write_sheet(results, "cats.html", title="a cat in jeans", total=len(index))
    """
    if thumbnail not in _SIDES:
        raise ConfigError(f"thumbnail must be 16 to 2048 pixels, not {thumbnail!r:.60}")
    if not isinstance(title, str):
        raise ConfigError(f"title must be a text, not {title!r:.60}")
    groups = _groups_in(results)
    head, foot = frame(title, style=STYLE, script=SCRIPT)
    with replacing(path) as partial:
        writer = _Writer(Path(path).parent, thumbnail)
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            file.write(f"{head}<h1>{as_html(title)}</h1>\n")
            if groups is None:
                file.writelines(writer.results(cast("Results", results), total))
            else:
                file.writelines(writer.groups(groups, total))
            file.write(f'<p class="copied" role="status"></p>{foot}')


def _groups_in(results: object) -> list[Duplicates] | None:
    """Return groups of duplicates, or None if these are results of a search."""
    if isinstance(results, Results):
        return None
    groups = list(cast("list[object]", results)) if isinstance(results, list | tuple) else [None]
    if not all(isinstance(group, Duplicates) for group in groups):
        raise ConfigError(
            "a sheet shows the Results of a search, or the list that `duplicates` returns, not "
            f"{results!r:.99}"
        )
    return cast("list[Duplicates]", groups)


class _Writer:
    """Write the content of a sheet piece by piece, so that one image at a time is held.

    Args:
        folder: of the page.
        side: pixels of thumbnails.
    """

    def __init__(self, folder: Path, side: int) -> None:
        self._folder = folder
        self._side = side
        width = max(_LEAST, round(side * _TILE))
        self._list = (
            '<ul class="images" role="list" aria-describedby="keys" '
            f'style="--tile:min(100%,{width}px)">\n'
        )

    def results(self, results: Results, total: int | None) -> Iterator[str]:
        """Yield the pieces of a page of results."""
        common = common_folder(results.paths)
        yield _lead(_about_results(len(results), total, common), len(results))
        if len(results):
            yield self._list
            for result in results:
                shown = look_at(result.path, self._side)
                yield self._tile(shown, common, _figures(result))
            yield "</ul>\n"

    def groups(self, groups: Sequence[Duplicates], total: int | None) -> Iterator[str]:
        """Yield the pieces of a page of duplicates. The images of one group are held at a time."""
        every = [path for group in groups for path in group.paths]
        common = common_folder(every)
        yield _lead(_about_groups(groups, total, common), len(every))
        for number, group in enumerate(groups, start=1):
            images = [look_at(path, self._side) for path in group.paths]
            largest = largest_of(images)
            yield f'<section aria-labelledby="group-{number}">'
            yield f'<h2 id="group-{number}">{_heading(group, images)}</h2>\n'
            yield self._list
            for image in images:
                yield self._tile(image, common, _measures(image, image.path in largest))
            yield "</ul></section>\n"

    def _tile(self, shown: Shown, common: str, facts: str) -> str:
        """Return an image with its path, which opens the file, and with what is told of it."""
        full, name = as_html(shown.path), as_html(short_name(shown.path, common))
        image = f'<img src="{shown.uri}" alt="" loading="lazy" decoding="async">'
        if shown.problem:
            image = f'<span class="missing">{as_html(shown.problem)}</span>'
        breaking = name.replace("/", "/<wbr>")
        return (
            f'<li><a href="{link_to(shown.path, self._folder)}" title="{full}" target="_blank" '
            f'rel="noopener">{image}<span class="file">{breaking}</span></a>'
            f'<div class="facts">{facts}</div>'
            f'<button type="button" aria-label="Copy path of {name}">Copy path</button></li>\n'
        )


def _lead(about: str, count: int) -> str:
    """Return what stands before the images: what they are, and the keys."""
    return f'<p class="how quiet">{about}</p>\n{_KEYS if count else ""}\n'


def _about_results(count: int, total: int | None, common: str) -> str:
    if not count:
        return f"Nothing was found{_among(total)}."
    return (
        f"{_count(count, total)}, the best first{_where(common)}. z is how many standard "
        "deviations the cosine of an image lies above the mean of all: above 3 or so, few get "
        "there by chance."
    )


def _about_groups(groups: Sequence[Duplicates], total: int | None, common: str) -> str:
    count = sum(len(group.paths) for group in groups)
    if not count:
        return f"No two images look alike{_among(total)}."
    return (
        f"{number_of(len(groups), 'group')} of images that look alike, {_count(count, total)}"
        f"{_where(common)}. Each image of a group is at least as near to another one of it as its "
        "cosine says."
    )


def _where(common: str) -> str:
    return "" if common in ("", ".", os.sep) else f", in {as_html(common)}"


def _count(count: int, total: int | None) -> str:
    if total is None:
        return number_of(count, "image")
    return f"{count:,} of {number_of(total, 'image')}"


def _among(total: int | None) -> str:
    return "" if total is None else f" among {number_of(total, 'image')}"


def _figures(result: Result) -> str:
    """Return the figures of a result."""
    z = "\u2013" if math.isnan(result.z) else f"{result.z:.1f}"
    return f"<span><i>z</i> <b>{z}</b></span><span><i>cosine</i> {result.cosine:.3f}</span>"


def _heading(group: Duplicates, images: Sequence[Shown]) -> str:
    count = number_of(len(group.paths), "image")
    if are_copies(images):
        return f"{count}, the same file byte for byte"
    return f"{count}, cosine {group.cosine:.3f}"


def _measures(image: Shown, is_largest: bool) -> str:
    """Return what helps to choose among images that look alike."""
    if image.problem:
        return ""
    sides = f"{image.width:,} &times; {image.height:,}"
    told = '<span class="best">largest</span>' if is_largest else ""
    return f"<span><b>{sides}</b></span><span>{size_in_words(image.size)}</span>{told}"
