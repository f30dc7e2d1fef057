"""Fetch checkpoint files: from the Hugging Face hub, and OpenAI's archives from their own address.

Both keep what they fetched, work offline from it, and never leave a partial file where a whole one belongs.
`HF_HUB_OFFLINE=1`, `HF_ENDPOINT`, `HF_HOME` and the other variables of huggingface_hub work as everywhere.
"""

from collections.abc import Sequence
from pathlib import Path

from clipkit.errors import CheckpointNotFoundError, CorruptCheckpointError, DownloadError
from clipkit.files import sha256

# The folder of OpenAI's own package, so that archives it has already downloaded are used (openai/CLIP, clip.py).
OPENAI_CACHE = "~/.cache/clip"

_GO_OFFLINE = (
    "To go on without a network, fetch it once where there is one and pass the path of the file or folder, or pass "
    "the cache_dir that already holds it."
)


def fetch_hub(
    repo_id: str,
    filenames: Sequence[str],
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Path:
    """Path of the first of `filenames` that the repository has, downloaded into the hub's cache unless it is there.

    Without a network, or with `local_files_only`, it is the first that the cache has. `revision` is a branch, tag
    or commit, and `token` the access token for private and gated repositories (the saved login by default).
    Raises `CheckpointNotFoundError` when there is no such repository, revision or file, and `DownloadError` when
    access is refused or the network fails.
    """
    from huggingface_hub import _CACHED_NO_EXIST, errors, hf_hub_download, try_to_load_from_cache

    try:
        cached = {
            name: try_to_load_from_cache(repo_id, name, cache_dir, revision) for name in filenames
        }
    except errors.HFValidationError as error:
        raise CheckpointNotFoundError(
            f"{repo_id!r} is no hub id such as 'owner/name': {error}"
        ) from error
    names = ", ".join(filenames)
    failure: BaseException | str | None = "asked for local files only" if local_files_only else None
    # What was not there before is asked for last: without a network the client waits long for what it has not cached.
    names_to_ask = sorted(filenames, key=lambda name: cached[name] is _CACHED_NO_EXIST)
    for filename in [] if local_files_only else names_to_ask:
        try:
            return Path(
                hf_hub_download(
                    repo_id, filename, revision=revision, cache_dir=cache_dir, token=token
                )
            )
        except errors.RemoteEntryNotFoundError:
            continue
        except errors.RevisionNotFoundError as error:
            raise CheckpointNotFoundError(
                f"The hub's {repo_id!r} has no revision {revision!r}"
            ) from error
        except errors.GatedRepoError as error:
            failure = error
            break
        except errors.RepositoryNotFoundError as error:
            raise CheckpointNotFoundError(
                f"The hub has no repository {repo_id!r}, or it is private; for a private one pass token=..."
            ) from error
        except (
            Exception
        ) as error:  # the client's transport, and so its errors, differ between its versions
            failure = (
                error.__cause__
                if isinstance(error, FileNotFoundError) and error.__cause__
                else error
            )
            break  # the other names would wait for the same network
    if failure is None:
        raise CheckpointNotFoundError(f"The hub's {repo_id!r} has none of the files tried: {names}")
    for path in cached.values():
        if isinstance(path, str):
            return Path(path)
    if all(path is _CACHED_NO_EXIST for path in cached.values()):  # the hub has said so before
        raise CheckpointNotFoundError(
            f"The hub's {repo_id!r} had none of the files tried when last asked: {names}"
        )
    cause = failure if isinstance(failure, BaseException) else None
    if getattr(getattr(cause, "response", None), "status_code", None) in (401, 403):
        raise DownloadError(
            f"The hub refused access to {repo_id!r}: {failure}. If the repository is gated, accept its terms at its "
            "page on the hub; then pass token=... of an account that may read it, or log in with `hf auth login`."
        ) from cause
    raise DownloadError(
        f"Neither the hub nor the cache gave {repo_id} (revision {revision or 'main'}): {names}. "
        f"The reason: {failure}. {_GO_OFFLINE}"
    ) from cause


def fetch_url(
    url: str, digest: str, cache_dir: str | Path | None = None, *, local_files_only: bool = False
) -> Path:
    """Path of the file at `url` in `cache_dir` (default: `OPENAI_CACHE`), downloaded unless it is there.

    `digest` is its SHA-256 in hexadecimal. A file of another digest is never used: it is downloaded anew, and
    replaced only when the new one is right. Raises `CorruptCheckpointError` when the downloaded bytes are not
    those promised, and `DownloadError` when the network fails.
    """
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from torch.hub import download_url_to_file

    path = Path(cache_dir or OPENAI_CACHE).expanduser() / url.rsplit("/", 1)[-1]
    damaged = ""
    if path.is_file():
        if (actual := sha256(path)) == digest.lower():
            return path
        damaged = (
            f" There is a file {path}, but its SHA-256 digest is {actual}, so it was not used."
        )
    if local_files_only or HF_HUB_OFFLINE:
        raise DownloadError(f"Offline, and no good copy of {url} at {path}.{damaged} {_GO_OFFLINE}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        # Writes to a temporary name beside `path`, and moves it there when the digest is right.
        download_url_to_file(url, str(path), hash_prefix=digest.lower())
    except RuntimeError as error:
        raise CorruptCheckpointError(
            f"What came from {url} is not the promised file, or not all of it ({error}); it was deleted. Try again."
        ) from error
    except Exception as error:  # urllib raises OSError, http.client its own
        raise DownloadError(
            f"Could not download {url} to {path}: {error}.{damaged} {_GO_OFFLINE}"
        ) from error
    return path
