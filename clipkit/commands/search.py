"""`clipkit search`, `similar`, `duplicates` and `index`: find images in a folder."""

import argparse
from pathlib import Path
from typing import Any

from clipkit.commands.command import (
    DONE,
    SOME_LEFT_OUT,
    Command,
    add_json,
    check_page,
    path_of,
)
from clipkit.commands.display import tell, warn
from clipkit.commands.indexes import (
    IndexChoice,
    add_index_options,
    open_index,
    take_index,
    tell_unreadable,
)
from clipkit.commands.inputs import STANDARD_INPUT, read_lines, read_templates
from clipkit.commands.model_options import take_model
from clipkit.commands.search_output import print_duplicates, print_results
from clipkit.errors import ClipkitError, ConfigError
from clipkit.plurals import number_of
from clipkit.search.collection import Collection
from clipkit.search.results import Results
from clipkit.search.sheet import write_sheet
from clipkit.search.store import matches


def _add_search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "query",
        metavar="QUERY",
        help="a text, an image file, or a sum such as '2 * dog - indoor + rex.jpg' (with spaces "
        "around the signs); - reads queries from standard input, one in each line",
    )
    _add_output(parser)
    _add_choice(parser)
    parser.add_argument(
        "--templates",
        nargs="+",
        metavar="TEXT",
        help="texts with {} where a text of the query goes, averaged; or the name of a prompt set "
        "such as imagenet (default: each text as it is)",
    )
    add_index_options(parser)


def search_command(
    *,
    query: str,
    top: int | None,
    threshold: float | None,
    where: str | None,
    templates: list[str] | None,
    html: Path | None,
    as_json: bool,
    paths: bool,
    null: bool,
    source: IndexChoice,
) -> int:
    """Print the images nearest to a query, or to each of several.

    Returns:
        0 if images were found for each query, 1 if for one of them there were none.
    """
    _check_top(top)
    several = query == STANDARD_INPUT
    queries = read_lines("queries") if several else [query]
    check_page(html)
    if html is not None:
        queries = list(queries)
        if len(queries) > 1:
            raise ConfigError("--html shows the results of one query: give one")
    collection = open_index(source)
    code = DONE
    for one in queries:  # each is answered before the next is read
        try:
            results = collection.search(
                one,
                top,
                threshold=threshold,
                where=where,
                templates=None if templates is None else read_templates(templates),
            )
        except ClipkitError as error:  # the other queries are none the worse for it
            if not several:
                raise
            warn(f"skipped: {one}: {error}")
            code = SOME_LEFT_OUT
            continue
        if not results:
            tell(_why_none(one, where, collection))
            code = SOME_LEFT_OUT
        print_results(
            results,
            as_json=as_json,
            only_paths=paths,
            null=null,
            query=one if several else None,
        )
        if html is not None:
            _write_html(results, html, one, collection)
    return code


def _add_similar(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "image",
        type=path_of,
        metavar="IMAGE",
        help="an image file, of the folder or from elsewhere",
    )
    _add_output(parser)
    _add_choice(parser)
    add_index_options(parser)


def similar(
    *,
    image: Path,
    top: int | None,
    threshold: float | None,
    where: str | None,
    html: Path | None,
    as_json: bool,
    paths: bool,
    null: bool,
    source: IndexChoice,
) -> int:
    """Print the images nearest to one image, without that image."""
    _check_top(top)
    check_page(html)
    collection = open_index(source)
    results = collection.similar(image, top, threshold=threshold, where=where)
    if not results:
        tell(_why_none(str(image), where, collection))
    print_results(results, as_json=as_json, only_paths=paths, null=null)
    if html is not None:
        _write_html(results, html, str(image), collection)
    return DONE if results else SOME_LEFT_OUT


def _add_duplicates(parser: argparse.ArgumentParser) -> None:
    _add_output(parser)
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.96,
        metavar="COSINE",
        help="how alike two images must be; 1 finds copies alone (default: 0.96)",
    )
    add_index_options(parser)


def duplicates(
    *,
    threshold: float,
    html: Path | None,
    as_json: bool,
    paths: bool,
    null: bool,
    source: IndexChoice,
) -> int:
    """Print groups of images that look alike."""
    check_page(html)
    collection = open_index(source)
    groups = collection.duplicates(threshold)
    print_duplicates(groups, as_json=as_json, only_paths=paths, null=null)
    if not groups:
        tell(f"No images look alike by a cosine of {threshold:g} or more.")
    if html is not None:
        title = f"Images alike by a cosine of {threshold:g} or more"
        write_sheet(groups, html, title=title, total=len(collection))
        tell(f"Wrote {html}.")
    return DONE


def _add_index(parser: argparse.ArgumentParser) -> None:
    add_index_options(parser)


def index(*, source: IndexChoice) -> int:
    """Build the index of a folder, or bring it up to date, and print what it holds."""
    collection = open_index(source, must_update=True)
    tell_unreadable(collection)
    count = number_of(len(collection), "image")
    print(f"{collection.folder}: {count}, {number_of(len(collection.skipped), 'file')} unreadable")
    return SOME_LEFT_OUT if collection.skipped else DONE


def _add_output(parser: argparse.ArgumentParser) -> None:
    """Add the forms in which results are written."""
    add_json(parser, help="print one JSON object for each result")
    group = parser.add_argument_group("output")
    group.add_argument(
        "-f", "--paths", action="store_true", help="print paths alone, one in each line"
    )
    group.add_argument(
        "-0",
        "--null",
        action="store_true",
        help="print paths alone, each ended by a NUL as xargs -0 takes them",
    )
    group.add_argument(
        "--html", type=path_of, metavar="FILE", help="write a contact sheet for the browser, too"
    )


def _add_choice(parser: argparse.ArgumentParser) -> None:
    """Add how many results there are."""
    parser.add_argument(
        "-n",
        "--top",
        type=int,
        metavar="N",
        help="images to show (default: 10; all above the threshold, if there is one)",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="Z",
        help="show images this many standard deviations above the mean of all, such as 3",
    )
    parser.add_argument(
        "--where",
        metavar="PATTERN",
        help="search only paths below the folder that match, such as '2024/*'",
    )


def _take(options: dict[str, Any]) -> None:
    take_model(options)
    take_index(options)


def _check_top(top: int | None) -> None:
    if top is not None and top < 1:
        raise ConfigError(f"--top must be at least 1, not {top}")


def _why_none(query: str, where: str | None, collection: Collection) -> str:
    """Return why there is nothing to show."""
    names = collection.names
    if not names:
        return "No image can be searched."
    if where is not None and not matches(names, where).any():
        examples = " and ".join(map(repr, dict.fromkeys((names[0], names[-1]))))
        return f"No path matches --where {where!r}. Paths of this index are such as {examples}."
    return f"No image is that near to {query!r}."


def _write_html(results: Results, path: Path, query: str, collection: Collection) -> None:
    write_sheet(results, path, title=query, total=len(collection))
    tell(f"Wrote {path}.")


SEARCH = Command(
    name="search",
    examples='clipkit search "a cat in jeans" photos/\n'
    'clipkit search "2 * dog - indoor + rex.jpg" photos/ -n 20 --html dogs.html\n'
    'clipkit search "a red car" photos/ --threshold 3 --paths',
    add_arguments=_add_search,
    run=search_command,
    prepare=_take,
)
SIMILAR = Command(
    name="similar",
    examples="clipkit similar photos/rex.jpg photos/ -n 5",
    add_arguments=_add_similar,
    run=similar,
    prepare=_take,
)
DUPLICATES = Command(
    name="duplicates",
    examples="clipkit duplicates photos/\nclipkit duplicates photos/ --threshold 1 --json",
    add_arguments=_add_duplicates,
    run=duplicates,
    prepare=_take,
)
INDEX = Command(
    name="index",
    examples="clipkit index photos/ --model ViT-B/32 --exclude thumbnails",
    add_arguments=_add_index,
    run=index,
    prepare=_take,
)
