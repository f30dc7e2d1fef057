"""Fetch checkpoint files from the Hugging Face hub, and OpenAI's archives from their own address.

Both functions keep what they fetched, work offline from it, and never leave a partial file where a
whole one belongs. `HF_HUB_OFFLINE=1`, `HF_ENDPOINT`, `HF_HOME` and the other variables of
huggingface_hub work as everywhere.
"""

import contextlib
import os
import urllib.error
import urllib.request
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

from clipkit.errors import CheckpointNotFoundError, CorruptCheckpointError, DownloadError
from clipkit.files import check_output, sha256
from clipkit.files.locks import holding

# OpenAI's own package keeps its archives here, so those it has downloaded are used
# (openai/CLIP, clip.py).
OPENAI_CACHE = "~/.cache/clip"

_PATIENCE = 4.0  # seconds for the first answer of a server, unless HF_HUB_ETAG_TIMEOUT is set


class MissingFilesError(CheckpointNotFoundError):
    """Report a repository that is there, but has none of the files that were asked for."""


def fetch_hub(
    repo_id: str,
    filenames: Sequence[str],
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Path:
    """Return the path of the first of `filenames` that a repository has, in the hub's cache.

    The file is downloaded unless it is there. Without a network, or with `local_files_only`, the
    first that the cache has is taken.

    Args:
        repo_id: "owner/name".
        filenames: in the order of preference.
        revision: a branch, tag or commit.
        cache_dir: where files are kept; the hub's own cache if not given.
        token: for private and gated repositories; the saved login if not given.
        local_files_only: ask no network.

    Raises:
        CheckpointNotFoundError: if there is no such repository, revision or file.
        DownloadError: if access is refused or the network fails.
    """
    cached = _look_in_cache(repo_id, filenames, revision, cache_dir)
    failure: BaseException | None = None
    if not local_files_only:
        # Without a network the client waits long for each file that is not in its cache, so what
        # was not there before is asked for last.
        in_turn = sorted(filenames, key=lambda name: _known_missing(cached[name]))
        try:
            if not isinstance(cached[in_turn[0]], str):
                _reach(repo_id, in_turn[0], revision, token)
            path = _download_first(repo_id, in_turn, revision, cache_dir, token)
        except (CheckpointNotFoundError, MemoryError):
            raise
        except Exception as error:  # the client's errors differ between its versions
            failure = _reason(error)
        else:
            if path is not None:
                return path
            names = ", ".join(filenames)
            raise MissingFilesError(f"The hub's {repo_id!r} has none of the files tried: {names}")
    return _take_from_cache(repo_id, revision, cache_dir, cached, failure)


def _look_in_cache(
    repo_id: str, filenames: Sequence[str], revision: str | None, cache_dir: str | Path | None
) -> dict[str, object]:
    """Return what the client's cache knows of each file.

    That is a path, None for what it does not know, or a mark of its own if the hub once said that
    there is no such file.
    """
    import huggingface_hub as client

    try:
        return {
            name: client.try_to_load_from_cache(repo_id, name, cache_dir, revision)
            for name in filenames
        }
    except client.errors.HFValidationError as error:
        raise CheckpointNotFoundError(
            f"{repo_id!r} is no hub id such as 'owner/name': {error}"
        ) from error


def _take_from_cache(
    repo_id: str,
    revision: str | None,
    cache_dir: str | Path | None,
    cached: Mapping[str, object],
    failure: BaseException | None,
) -> Path:
    """Return the first file that the cache has, since the hub failed or was not to be asked."""
    for entry in cached.values():
        if isinstance(entry, str):
            return Path(entry)
    names = ", ".join(cached)
    if all(_known_missing(entry) for entry in cached.values()):
        raise MissingFilesError(
            f"The hub's {repo_id!r} had none of the files tried when last asked: {names}"
        )
    raise _download_error(repo_id, revision, cache_dir, names, failure) from failure


def _known_missing(entry: object) -> bool:
    """Return whether the cache remembers that the hub has no such file."""
    return entry is not None and not isinstance(entry, str)


def _reason(error: Exception) -> BaseException:
    """Return what is behind an error.

    The client raises a FileNotFoundError where the network failed and the cache has no copy.
    """
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        return error.__cause__
    return error


def _reach(repo_id: str, filename: str, revision: str | None, token: str | bool | None) -> None:
    """Raise the client's error if the hub gives no answer, whatever the answer is.

    The client's own download would ask again and again for half a minute.
    """
    import huggingface_hub as client

    url = client.hf_hub_url(repo_id, filename, revision=revision)
    is_set = "HF_HUB_ETAG_TIMEOUT" in os.environ
    patience = client.constants.HF_HUB_ETAG_TIMEOUT if is_set else _PATIENCE
    for is_last in (False, True):  # a connection that was kept open may have been closed
        try:
            client.get_hf_file_metadata(url, token=token, timeout=patience)
        except client.errors.HfHubHTTPError:
            return  # the hub is there, and what it says is for the download
        except Exception as error:
            if is_last or "Timeout" in type(error).__name__:
                raise
        else:
            return


def _download_first(
    repo_id: str,
    filenames: Sequence[str],
    revision: str | None,
    cache_dir: str | Path | None,
    token: str | bool | None,
) -> Path | None:
    """Download the first file that the repository has; return None if it has none of them.

    Raises `CheckpointNotFoundError` if the hub says that there is no such repository or revision,
    and the client's own errors if access is refused or the network fails.
    """
    import huggingface_hub as client

    errors = client.errors
    for filename in filenames:
        try:
            path = client.hf_hub_download(
                repo_id, filename, revision=revision, cache_dir=cache_dir, token=token
            )
            return Path(path)
        except errors.RemoteEntryNotFoundError:
            continue
        except errors.RevisionNotFoundError as error:
            raise CheckpointNotFoundError(
                f"The hub's {repo_id!r} has no revision {revision!r}"
            ) from error
        except errors.GatedRepoError:  # a RepositoryNotFoundError too, but the repository is there
            raise
        except errors.RepositoryNotFoundError as error:
            raise CheckpointNotFoundError(
                f"The hub has no repository {repo_id!r}, or it is private; for a private one pass "
                "token=..."
            ) from error
    return None


def _download_error(
    repo_id: str,
    revision: str | None,
    cache_dir: str | Path | None,
    names: str,
    failure: BaseException | None,
) -> DownloadError:
    """Make the error that says why neither the hub nor the cache gave a file, and what to do."""
    from huggingface_hub.constants import HF_HUB_CACHE

    status = getattr(getattr(failure, "response", None), "status_code", None)
    if status in (401, 403):
        return DownloadError(
            f"The hub refused access to {repo_id!r}: {_without_stop(failure)}. If the repository "
            "is gated, accept its terms at its page on the hub; then pass token=... of an account "
            "that may read it, or log in with `hf auth login`."
        )
    reason = "asked for local files only" if failure is None else _without_stop(failure)
    folder = f"models--{repo_id.replace('/', '--')}"
    return DownloadError(
        f"Neither the hub nor the cache gave {repo_id} (revision {revision or 'main'}): {names}. "
        f"The reason: {reason}. To go on without a network, run `hf download {repo_id}` where "
        f"there is one and copy its folder {folder} into {cache_dir or HF_HUB_CACHE}; or pass the "
        "path of the file or folder, or pass the cache_dir that already holds it."
    )


def _without_stop(failure: BaseException | None) -> str:
    """Return what an error says, so that a sentence can go on or end after it."""
    return str(failure).rstrip().removesuffix(".")


@contextlib.contextmanager
def _alone(path: Path) -> Generator[None, None, None]:
    """Hold the download of a file for this process, and remove what killed ones left beside it.

    Where another process downloads the same file, both do, and nothing is removed.
    """
    with contextlib.ExitStack() as held:
        partials = list(path.parent.glob(f"{path.name}.*.partial"))
        try:
            held.enter_context(holding(path.with_name(f".{path.name}.lock")))
        except OSError:  # another process holds it
            partials = []
        for partial in partials:
            with contextlib.suppress(OSError):
                partial.unlink()
        yield


def _download(url: str, path: Path, digest: str) -> None:
    """Download a file, if its server answers soon."""
    from torch.hub import download_url_to_file

    question = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "clipkit"})
    with contextlib.suppress(urllib.error.HTTPError):  # it is there, and may answer no HEAD
        urllib.request.urlopen(question, timeout=_PATIENCE).close()
    with _alone(path):
        # It writes to a temporary name beside `path`, and moves that when the digest is right.
        download_url_to_file(url, str(path), hash_prefix=digest.lower())


def fetch_url(
    url: str, digest: str, cache_dir: str | Path | None = None, *, local_files_only: bool = False
) -> Path:
    """Return the path of the file at `url` in a cache folder; it is downloaded unless it is there.

    A file of another digest is never used. It is downloaded anew, and replaced only when the new
    one is right.

    Args:
        url: the address; its last part is the name of the file.
        digest: the file's SHA-256 in hexadecimal.
        cache_dir: the folder; `OPENAI_CACHE` if not given.
        local_files_only: ask no network.

    Raises:
        CorruptCheckpointError: if the downloaded bytes are not those promised.
        DownloadError: if the network fails.
        OutputError: if the cache folder cannot be written.
    """
    from huggingface_hub.constants import HF_HUB_OFFLINE

    path = Path(cache_dir or OPENAI_CACHE).expanduser() / url.rsplit("/", 1)[-1]
    damaged = ""
    if path.is_file():
        actual = sha256(path)
        if actual == digest.lower():
            return path
        damaged = (
            f" There is a file {path}, but its SHA-256 digest is {actual}, so it was not used."
        )
    remedy = (
        f"To go on without a network, fetch it where there is one and copy it to {path}, or pass "
        "its path."
    )
    if local_files_only or HF_HUB_OFFLINE:
        raise DownloadError(f"Offline, and no good copy of {url} at {path}.{damaged} {remedy}")
    check_output(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _download(url, path, digest)
    except RuntimeError as error:
        raise CorruptCheckpointError(
            f"What came from {url} is not the promised file, or not all of it ({error}); it was "
            "deleted. Try again."
        ) from error
    except Exception as error:  # urllib raises OSError, http.client its own
        raise DownloadError(
            f"Could not download {url} to {path}: {error}.{damaged} {remedy}"
        ) from error
    return path
