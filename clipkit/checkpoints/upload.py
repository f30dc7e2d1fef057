"""Put a folder on the Hugging Face hub, as one commit to a repository."""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from clipkit.checkpoints.card import model_card
from clipkit.checkpoints.save import FolderLayout, weights_before
from clipkit.config import CLIPConfig
from clipkit.errors import ClipkitError, ConfigError, UploadError

CARD = "README.md"  # what the hub shows of a repository


def push(
    fill: Callable[[Path], None],
    card: Callable[[str, str | None, str | None], str],
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    update: bool = False,
    license: str | None = None,
    base_model: str | None = None,
    replaced_by: Sequence[str] = (),
) -> str:
    """Upload what a function writes into a temporary folder, with a card, and return the address.

    A card that is there stays as it is: somebody may have written it.

    Args:
        fill: writes the files into the folder that it is given.
        card: makes the text of README.md of the whole id, the license and the base model.
        repo_id: "owner/name", or a name of your own account.
        private: whether others may not see the repository. None leaves it to the account's setting,
            which is public unless it was changed. One that is there stays as it is.
        token: of an account that may write there; the saved login if not given.
        commit_message: what the commit says; "Upload by clipkit" if not given.
        update: add a commit to the repository if there is one, in place of an error.
        license: of the weights, as the hub calls it, such as "mit". It is for the caller to know.
        base_model: the hub id of what this was made from.
        replaced_by: names of files that `load` would take in place of those that are uploaded.

    Raises:
        ConfigError: if the arguments are impossible, or the repository has one of those files.
        UploadError: if there is no token, the account may not write there, the name is taken, or
            the network fails.
    """
    import huggingface_hub as client

    texts = {"commit_message": commit_message, "license": license, "base_model": base_model}
    _check_arguments(repo_id, private, token, texts)
    api: Any = client.HfApi(token=token)
    try:
        with tempfile.TemporaryDirectory(prefix="clipkit-upload-") as temporary:
            folder = Path(temporary)
            fill(folder)
            address = _create(api, repo_id, private, update)
            present = _present(api, address.repo_id) if update else []
            _refuse_other_weights(repo_id, present, replaced_by)
            if CARD not in present:
                text = card(address.repo_id, license, base_model)
                (folder / CARD).write_text(text, "utf-8")
            api.upload_folder(
                repo_id=address.repo_id,
                folder_path=folder,
                commit_message=commit_message or "Upload by clipkit",
            )
    except (ClipkitError, MemoryError):
        raise
    except Exception as error:  # the client's errors differ between its versions
        raise _upload_error(repo_id, error) from error
    return str(address)


def push_model(
    save: Callable[[Path], None],
    config: CLIPConfig,
    layout: FolderLayout,
    repo_id: str,
    *,
    private: bool | None,
    token: str | bool | None,
    commit_message: str | None,
    update: bool,
    license: str | None,
    base_model: str | None,
) -> str:
    """Upload a model with its card, and return the address of the repository.

    Args:
        save: writes the model into a folder.
        config, layout: what it is, and how it is written.
        repo_id, private, token, commit_message, update: as in `push`.
        license, base_model: for the card; None leaves them out.
    """
    return push(
        save,
        partial(model_card, config, layout),
        repo_id,
        private=private,
        token=token,
        commit_message=commit_message,
        update=update,
        license=license,
        base_model=base_model,
        replaced_by=weights_before(layout),
    )


def _check_arguments(
    repo_id: object, private: object, token: object, texts: Mapping[str, object]
) -> None:
    """Raise `ConfigError` for impossible arguments, before anything is written."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(cast("str", repo_id))
    except HFValidationError as error:
        raise ConfigError(
            f"repo_id must be a hub id such as 'owner/name', not {repo_id!r:.99}: {error}"
        ) from error
    if not isinstance(private, bool | None):
        raise ConfigError(f"private must be True, False or None, not {private!r:.60}")
    if not isinstance(token, str | bool | None):  # it is secret, so it is not shown
        raise ConfigError(f"token must be a string or a bool, not of type {type(token).__name__}")
    for name, text in texts.items():
        if not isinstance(text, str | None):
            raise ConfigError(f"{name} must be a text, not {text!r:.60}")


def _create(api: Any, repo_id: str, private: bool | None, update: bool) -> Any:
    """Make the repository, unless it is there and may be, and return its address."""
    try:
        return api.create_repo(repo_id, private=private, exist_ok=update)
    except Exception as error:
        if _status(error) != 409:
            raise
        raise UploadError(
            f"the hub has a repository {repo_id!r} already: pass update=True to add a commit to "
            "it, or another name"
        ) from error


def _present(api: Any, repo_id: str) -> list[str]:
    """Return the names of the files that a repository has."""
    siblings: list[Any] = api.model_info(repo_id).siblings or []
    return [sibling.rfilename for sibling in siblings]


def _refuse_other_weights(repo_id: str, present: Sequence[str], preferred: Sequence[str]) -> None:
    """Raise `ConfigError` if `load` would take other files of the repository."""
    for name in preferred:
        if name in present:
            raise ConfigError(
                f"the hub's {repo_id!r} holds {name}, which load would take instead: delete it "
                "there, or upload to another repository"
            )


def _status(error: BaseException) -> int | None:
    """Return the status of the hub's answer that an error is about, if there was an answer."""
    return getattr(getattr(_reason(error), "response", None), "status_code", None)


def _answer(error: BaseException) -> str:
    """Return what the hub says of an error, or what the client does."""
    reason = _reason(error)
    return str(getattr(reason, "server_message", None) or reason)


def _reason(error: BaseException) -> BaseException:
    """Return what is behind an error: of a large file the client says no more than its name."""
    if type(error) is RuntimeError and error.__cause__ is not None:
        return error.__cause__
    return error


def _upload_error(repo_id: str, error: Exception) -> UploadError:
    """Make the error that says why nothing was uploaded, and what to do."""
    from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

    status = _status(error)
    if status == 401 or isinstance(error, LocalTokenNotFoundError):
        return UploadError(
            f"the hub takes nothing for {repo_id!r} without a token: pass token=... with write "
            "access (huggingface.co/settings/tokens), or log in with `hf auth login`"
        )
    if status == 403:
        return UploadError(
            f"the token's account may not write to {repo_id!r}: {_answer(error)}. Pass a token=... "
            "with write access of an account that may, or a name of your own account"
        )
    if isinstance(error, OfflineModeIsEnabled):
        return UploadError(
            f"{repo_id!r} was not uploaded, because {os.environ.get('HF_HUB_OFFLINE', 'a setting')}"
            " in HF_HUB_OFFLINE forbids the network: unset it, and start the program again"
        )
    return UploadError(
        f"{repo_id!r} was not uploaded: {_answer(error)}. Nothing counts on the hub before its "
        "commit, so try again where there is a network, with update=True if the repository is "
        "there by now; or save to a folder, and upload that later with "
        f"`hf upload {repo_id} FOLDER`"
    )
