"""Find tar shards and read the files in them. No shard's name or content runs anything.

webdataset would hand names such as "pipe:COMMAND" to a shell, and addresses to `curl` in one. So
its openers take no part: shards are opened here, and webdataset gets the files in them.
"""

import importlib
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from http.client import HTTPMessage
from itertools import islice
from typing import IO, Any, cast
from urllib.request import HTTPRedirectHandler, Request, build_opener

from clipkit.errors import DataError
from clipkit.files import address_scheme, check_file

_MOST_SHARDS = 500_000
_MOST_BYTES = 1 << 28  # of a file in a shard; an image and its captions are much smaller
_PATIENCE = 60.0  # seconds to wait for a server
_SECURE = "https"  # the only scheme that is read


def check_shards(urls: object) -> None:
    """Raise `DataError` unless these are names of shards: paths, or addresses by https.

    Args:
        urls: a text, with braces or without, or a list of them. Other schemes are refused by name.
    """
    names = [urls] if isinstance(urls, str) else urls
    if not isinstance(names, list | tuple) or not names:
        raise DataError(f"shards must be a path, with braces for many, or a list, not {urls!r:.99}")
    for name in cast("Sequence[object]", names):
        if not isinstance(name, str) or not name.strip() or "\0" in name:
            raise DataError(f"a shard must be a path, not {name!r:.99}")
        scheme = address_scheme(name)
        # Braces may make a scheme of what looks like none: "{pipe,x}:COMMAND".
        hidden = scheme is None and ":" in name.split("/")[0].removeprefix(_drive_of(name))
        if hidden or scheme not in (None, _SECURE):
            raise DataError(
                f"{name!r:.99} is an address ({scheme or 'in braces'}:), and no shard is read from "
                "there: download the shards and give their paths. Only https:// is read directly; "
                "a path with a colon begins with ./"
            )


def _drive_of(name: str) -> str:
    """Return the drive that a path of Windows begins with, or an empty text."""
    return name[:2] if name[1:3] in (":\\", ":/") else ""


def expand_shards(urls: str | Sequence[str]) -> list[str]:
    """Return the names of the shards that braces stand for; those of a list are as they are.

    Raises:
        DataError: if the braces do not match, stand for too many, or for what `check_shards`
            refuses.

    Example:
        expand_shards("{00..11}.tar")  # 12 names
    """
    if not isinstance(urls, str):
        return list(urls)
    # webdataset depends on this package, which has no types.
    braceexpand: Any = importlib.import_module("braceexpand").braceexpand
    try:
        _refuse_long_ranges(urls)
        found: list[str] = list(islice(braceexpand(urls, escape=os.sep == "/"), _MOST_SHARDS + 1))
    except (ValueError, RecursionError) as error:
        raise DataError(f"the braces of {urls!r:.99} cannot be read: {error}") from error
    if len(found) > _MOST_SHARDS:
        raise DataError(f"{urls!r:.99} stands for more than {_MOST_SHARDS:,} shards")
    check_shards(found)
    return found


def _refuse_long_ranges(urls: str) -> None:
    """Raise ValueError for ranges of numbers that would take long to be written out."""
    names = 1
    for first, last in re.findall(r"(-?\d+)\.\.(-?\d+)", urls):
        length = abs(int(last) - int(first)) + 1
        names *= length
        # Ranges within other braces need not multiply, so there may be fewer names than that.
        if length > _MOST_SHARDS or names > 20 * _MOST_SHARDS:
            raise ValueError(f"up to {first}..{last} they are more than {_MOST_SHARDS:,} names")


def files_of(shard: str) -> Iterator[dict[str, Any]]:
    """Yield the files of a shard, as webdataset's `group_by_keys` takes them.

    Raises:
        DataError: if the shard cannot be read, or not to its end.
    """
    try:
        with _open(shard) as stream, tarfile.open(fileobj=stream, mode="r|*") as archive:
            for member in archive:
                content = _content_of(archive, member)
                if content is not None:
                    yield {"fname": member.name, "data": content, "__url__": shard}
                # Otherwise it keeps them all. The stub lacks the list.
                archive.members = []  # pyright: ignore[reportAttributeAccessIssue]
    # Damaged bytes make tarfile and what unpacks for it raise nearly anything.
    except Exception as error:
        raise DataError(f"{shard}: {error or type(error).__name__}") from error


def _content_of(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | None:
    """Return the content of a file of a sample; None for anything else in a shard."""
    if not member.isreg() or member.name.startswith("__") or ".__" in member.name:
        return None  # webdataset keeps notes about a sample under such names
    if member.size > _MOST_BYTES or member.issparse():
        raise DataError(
            f"{member.name} claims {member.size:,} bytes, more than the {_MOST_BYTES:,} that a "
            "file in a shard may have"
        )
    file = archive.extractfile(member)
    return None if file is None else file.read()


class _SecureRedirections(HTTPRedirectHandler):
    """Follow a server to other addresses by https alone."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        if address_scheme(newurl) != _SECURE:
            raise DataError(f"the server sends to {newurl!r:.99}, which does not begin with https:")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(shard: str) -> IO[bytes]:
    if address_scheme(shard) == _SECURE:
        return build_opener(_SecureRedirections).open(shard, timeout=_PATIENCE)
    check_file(shard)
    return open(shard, "rb")
