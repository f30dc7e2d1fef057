"""Fetch the folder of a classifier from the Hugging Face hub, and write the card of one."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from clipkit.checkpoints.card import card, describe_tower, plain, use
from clipkit.checkpoints.documents import CONFIG, MERGES
from clipkit.checkpoints.hub import MissingFilesError, fetch_hub
from clipkit.checkpoints.source import is_hub_id, refuse_revision
from clipkit.classify.folder import HEAD, MODEL, WEIGHTS, ZERO_SHOT
from clipkit.classify.words import choices_in_words
from clipkit.config import CLIPConfig
from clipkit.errors import CheckpointNotFoundError, CorruptCheckpointError, DownloadError
from clipkit.files import read_json
from clipkit.plurals import number_of, number_of_classes

_SHOWN = 100  # labels on a card


def find_folder(
    name: str | os.PathLike[str],
    *,
    revision: str | None,
    cache_dir: str | os.PathLike[str] | None,
    token: str | bool | None,
    local_files_only: bool,
) -> str | os.PathLike[str]:
    """Return the folder of a classifier: a local one as it is, one of the hub in its cache.

    Args:
        name: a path, or "owner/name" where there is no such path.
        revision, cache_dir, token, local_files_only: as in `clipkit.load`.

    Raises:
        CheckpointNotFoundError: if the hub has no such repository, or it holds no classifier.
        DownloadError: if the network fails or access is refused.
        ConfigError: if a revision is given for a local folder.
    """
    if not is_hub_id(name) or os.path.exists(name):
        refuse_revision(name, revision)
        return name
    repo_id = os.fspath(name)
    fetch = partial(
        fetch_hub,
        repo_id,
        cache_dir=None if cache_dir is None else Path(cache_dir),
        token=token,
        local_files_only=local_files_only,
    )
    failure: CheckpointNotFoundError | DownloadError
    try:
        folder = fetch([HEAD], revision=revision).parent
    except MissingFilesError as error:
        raise CheckpointNotFoundError(
            f"the hub's {repo_id!r} has no {HEAD}, so it is no classifier. If it is a model, make "
            f"a classifier of it by ImageClassifier.zero_shot({repo_id!r}, class_names)"
        ) from error
    except (CheckpointNotFoundError, DownloadError) as error:
        failure = error
    else:
        _fetch_rest(partial(fetch, revision=folder.name), folder)
        return folder
    raise type(failure)(f"{failure}\nNor is there a local folder {repo_id!r}") from None


def _fetch_rest(fetch: Any, folder: Path) -> None:
    """Fetch the other files of a classifier.

    The folder is named by its commit. All files are of that one, though the branch may move on.
    """
    for name in (ZERO_SHOT, f"{MODEL}/{CONFIG}", f"{MODEL}/{WEIGHTS}"):
        fetch([name])
    config = read_json(folder / MODEL / CONFIG, error=CorruptCheckpointError)
    if config.get("tokenizer") == MERGES:
        fetch([f"{MODEL}/{MERGES}"])


def classifier_card(
    config: CLIPConfig,
    labels: Sequence[str],
    provenance: Mapping[str, Any],
    repo_id: str,
    license: str | None,
    base_model: str | None,
) -> str:
    """Return the card of a classifier.

    Args:
        config: of its model.
        labels: C names.
        provenance: how its head was made.
        repo_id: where it will be.
        license, base_model: see `clipkit.checkpoints.card.card`.
    """
    shown = "\n".join(f"- {plain(label)}" for label in labels[:_SHOWN])
    if len(labels) > _SHOWN:
        shown += f"\n- and {len(labels) - _SHOWN:,} more"
    return card(
        repo_id,
        task="image-classification",
        tags=["clip", "image-classification"],
        library="clipkit",
        license=license,
        base_model=base_model,
        body=[
            f"A classifier of images: a CLIP with {describe_tower(config)}, and a head of "
            f"{number_of_classes(len(labels))} on its features.",
            use(
                f"classifier = clipkit.ImageClassifier.load({repo_id!r})",
                'print(classifier.predict("photo.jpg").top(5))',
            ),
            f"## How it was made\n\n{_how(provenance)}",
            f"## Labels\n\n{shown}",
        ],
    )


def _how(provenance: Mapping[str, Any]) -> str:
    """Return in words how a head was made."""
    method = str(provenance.get("method"))
    if method == "zero_shot":
        return "Of the names of its classes alone, without images (zero-shot)."
    counts = provenance.get("counts")
    made = f"The head was fitted by the method {plain(method)}"
    if isinstance(counts, list) and counts:
        numbers = cast("list[int]", counts)
        made += (
            f" on {number_of(sum(numbers), 'image')}, {min(numbers):,} to {max(numbers):,} a class"
        )
    choices = [f"{name} {value}" for name, value in choices_in_words(provenance).items()]
    made += f" ({', '.join(choices)})." if choices else "."
    if "adapted" in provenance:
        made += " It was then adapted to a batch of images without labels."
    return made
