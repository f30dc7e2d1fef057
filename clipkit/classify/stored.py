"""Keep a classifier in a folder: the model, both heads and all that belongs to them."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from clipkit.checkpoints.upload import push
from clipkit.classify.folder import MODEL, Parts, load_parts, save_parts
from clipkit.classify.heads import CosineHead, Head
from clipkit.classify.hub_folder import classifier_card, find_folder
from clipkit.classify.predictor import Predictor
from clipkit.classify.seen import SEEN, count_seen
from clipkit.classify.words import describe, describe_as_html
from clipkit.clip import CLIP
from clipkit.errors import ConfigError
from clipkit.prompts import CheckedTemplates

Classifier = TypeVar("Classifier", bound="StoredClassifier")


class StoredClassifier(Predictor):
    """Tie a CLIP, a head, its labels and what it was made from, and keep them in a folder.

    Args:
        model: the CLIP.
        head: from its features to logits.
        labels: C names, one per class.
        zero_shot_head: the head before any fitting; every fit starts from it.
        prompts: for each class, the prompts that made the zero-shot head.
        provenance: how the head was made, as JSON. It informs people; nothing that is computed
            depends on it.
        templates: what made the prompts out of class names; None if that is not known.

    Raises:
        ConfigError: if labels, prompts and heads are not of one number of classes, or a head is of
            another width than the model.
    """

    def __init__(
        self,
        model: CLIP,
        head: Head,
        labels: list[str],
        zero_shot_head: CosineHead,
        prompts: list[list[str]],
        provenance: dict[str, Any] | None = None,
        templates: CheckedTemplates | None = None,
    ) -> None:
        super().__init__(model, head, labels)
        if not len(labels) == head.classes == zero_shot_head.classes == len(prompts):
            raise ConfigError(
                f"a classifier needs as many labels ({len(labels)}) and prompts ({len(prompts)}) "
                f"as its heads have classes ({head.classes}, {zero_shot_head.classes})"
            )
        if not head.width == zero_shot_head.width == model.config.embed_dim:
            raise ConfigError(
                f"features of width {model.config.embed_dim} need heads of that width, "
                f"not {head.width}"
            )
        self.zero_shot_head = zero_shot_head
        self.prompts = prompts
        self.provenance = provenance or {"method": "zero_shot"}
        self.templates = templates
        self.train(model.training)

    def count_seen(self, features: Tensor, paths: Sequence[str | None] | None = None) -> int:
        """Return how many of these images the head was fitted on, and so should not be measured on.

        Images are known by names, sizes and times of their files, and by features that the same
        model makes of them. Of more than 2,000 images only a part is known, and the count is a
        lower bound. So it is 0 for a classifier that does not know what it was fitted on, as those
        of version 0.1.0.

        Args:
            features: (N, D) of unit length, as from `embed`.
            paths: N paths of the images' files, None for an image without one.
        """
        if paths is None:
            paths = [None] * len(features)
        return count_seen(features, paths, self.provenance.get(SEEN))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the model with its preprocessing, both heads, labels, prompts and calibration.

        Templates are written too, unless they are functions: then what is loaded has the prompts
        that they made, and `add_classes` asks for templates. A preprocessing that is neither a
        `Preprocess` nor known to `CLIP.save_pretrained` cannot be written either, and `load` asks
        for it.

        Args:
            folder: made if it does not exist. A classifier that is there is replaced as one: a
                process that is killed at any moment leaves the old one or the new one. Other files
                in the folder stay as they are. It may be the one that this was loaded from.

        Raises:
            ConfigError: as `CLIP.save_pretrained`.
            OutputError: if the folder cannot be written.
        """
        self.model.check_original("save the classifier of")
        save_parts(self.model, self._parts(), folder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
        update: bool = False,
        license: str | None = None,
        base_model: str | None = None,
    ) -> str:
        """Upload what `save` writes to the Hugging Face hub, and return the address.

        The names of images that could not be read when it was fitted stay here.

        Example:
            classifier.push_to_hub("owner/pets", private=True, license="mit")
            clipkit.ImageClassifier.load("owner/pets")

        Args:
            repo_id, private, token, commit_message, update: see `clipkit.checkpoints.upload.push`.
            license: of the weights, as the hub calls it, such as "mit". It is for you to know.
            base_model: the hub id of the CLIP; the model's `hub_id` if not given. It is on the
                card, so that all who see the card see it, also the id of a private repository.

        Raises:
            ConfigError: as `save`, or if an argument is impossible.
            UploadError: if the hub takes nothing; the message says what it wants.
        """
        self.model.check_original("upload the classifier of")
        provenance = {name: value for name, value in self.provenance.items() if name != "skipped"}
        parts = replace(self._parts(), provenance=provenance)
        return push(
            lambda folder: save_parts(self.model, parts, folder),
            partial(classifier_card, self.model.config, self.labels, provenance),
            repo_id,
            private=private,
            token=token,
            commit_message=commit_message,
            update=update,
            license=license,
            base_model=base_model or self.model.hub_id,
        )

    @classmethod
    def load(
        cls: type[Classifier],
        folder: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        preprocess: Callable[[Any], Tensor] | None = None,
        resolution: int | tuple[int, int] | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> Classifier:
        """Return what `save` or `push_to_hub` wrote, in eval mode.

        Example:
            classifier = clipkit.ImageClassifier.load("pets/", device="cpu")
            classifier = clipkit.ImageClassifier.load("owner/pets", revision="v2")

        Args:
            folder: where it was saved; or "owner/name" on the hub, if there is no such folder.
            device, dtype, resolution: as in `CLIP.from_pretrained`. Heads are float32.
            preprocess: in place of the preprocessing that was saved, or could not be saved.
            revision, cache_dir, token, local_files_only: for the hub, as in `clipkit.load`.

        Raises:
            CheckpointNotFoundError: if a file is missing, as in the folder of a plain model, or
                there is no such repository or revision.
            DownloadError: if the network fails or access is refused.
            CorruptCheckpointError: if a file is damaged, or the files are not of one classifier.
            ConfigError: as `CLIP.from_pretrained`.
        """
        folder = find_folder(
            folder,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
        )
        parts = load_parts(folder)
        model = CLIP.from_pretrained(
            Path(folder, MODEL),
            device=device,
            dtype=dtype,
            resolution=resolution,
            preprocess=preprocess,
        )
        loaded = cls(
            model,
            parts.head,
            parts.labels,
            parts.zero_shot_head,
            parts.prompts,
            parts.provenance,
            parts.templates,
        ).to(model.device)
        loaded.calibration = parts.calibration
        return loaded

    def _parts(self) -> Parts:
        return Parts(
            head=self.head,
            labels=self.labels,
            zero_shot_head=self.zero_shot_head,
            prompts=self.prompts,
            provenance=self.provenance,
            templates=self.templates,
            calibration=self.calibration,
        )

    def __repr__(self) -> str:
        vision = self.model.config.vision
        return describe(self.labels, self.provenance, vision, self.calibration)

    def _repr_html_(self) -> str:
        """Return a table for notebooks."""
        vision = self.model.config.vision
        return describe_as_html(self.labels, self.provenance, vision, self.calibration)
