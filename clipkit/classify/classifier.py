"""`ImageClassifier`: a CLIP, a head and its labels, from zero-shot to fitted, saved and exported as one."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.classify.export import export
from clipkit.classify.few_shot import check_method, fit_head
from clipkit.classify.heads import CacheHead, CosineHead, Head, LinearHead, load_head, save_head
from clipkit.classify.zero_shot import zero_shot_weights
from clipkit.clip import CLIP
from clipkit.data.pictures import Images
from clipkit.encode.embed import embed_images, embed_texts
from clipkit.encode.store import extract_features
from clipkit.errors import ConfigError, CorruptCheckpointError, DataError
from clipkit.prompts import TEMPLATES, ClassNames, Templates, render

if TYPE_CHECKING:
    from PIL.Image import Image

MODEL, HEAD, ZERO_SHOT = (
    "model",
    "head.safetensors",
    "zero_shot.safetensors",
)  # in the folder of a classifier


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a classifier says of one picture.

    Attributes:
        labels: C names.
        probabilities: (C,) float32, on the CPU, their sum is 1.
    """

    labels: list[str]
    probabilities: Tensor

    @property
    def label(self) -> str:
        """The likeliest."""
        return self.labels[int(self.probabilities.argmax())]

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The k likeliest labels with their probabilities, the likeliest first; all if there are fewer."""
        if k < 1:
            raise ConfigError(f"top needs k of at least 1, not {k}")
        values, indices = self.probabilities.topk(min(k, len(self.labels)))
        return [(self.labels[i], p) for i, p in zip(indices.tolist(), values.tolist(), strict=True)]


class ImageClassifier(nn.Module):
    """A CLIP's image tower and a head. Make one by `zero_shot` or `load`.

    Args:
        model: the CLIP.
        head: from its features to logits.
        labels: C names, one per class.
        zero_shot_head: the head before any fitting, from which every fit starts.
        prompts: of each class, which made the zero-shot head.
        provenance: how the head was made, as JSON.
    """

    def __init__(
        self,
        model: CLIP,
        head: Head,
        labels: list[str],
        zero_shot_head: CosineHead,
        prompts: list[list[str]],
        provenance: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not len(labels) == head.classes == zero_shot_head.classes == len(prompts):
            raise ConfigError(
                f"a classifier needs as many labels ({len(labels)}) and prompts ({len(prompts)}) as its heads have "
                f"classes ({head.classes}, {zero_shot_head.classes})"
            )
        if not head.width == zero_shot_head.width == model.config.embed_dim:
            raise ConfigError(
                f"features of width {model.config.embed_dim} need heads of that width, not {head.width}"
            )
        self.model, self.head, self.zero_shot_head = model, head, zero_shot_head
        self.labels, self.prompts, self.provenance = (
            labels,
            prompts,
            provenance or {"method": "zero_shot"},
        )
        self.train(model.training)

    @classmethod
    def zero_shot(
        cls,
        model: "CLIP | str | os.PathLike[str]",
        class_names: ClassNames,
        templates: Templates = TEMPLATES,
        *,
        progress: bool = False,
    ) -> "ImageClassifier":
        """A classifier from class names alone.

        Args:
            model: a CLIP, or the name of one to load.
            class_names, templates, progress: as in `zero_shot_weights`.
        """
        model = model if isinstance(model, CLIP) else CLIP.from_pretrained(model)
        labels, prompts = render(class_names, templates)
        weights = zero_shot_weights(
            model, dict(zip(labels, prompts, strict=True)), ["{}"], progress=progress
        )
        head = CosineHead(weights, model.logit_scale)
        return cls(
            model, CosineHead(weights, model.logit_scale).eval(), labels, head.eval(), prompts
        )

    def forward(self, images: Tensor) -> Tensor:
        """Preprocessed images (N, 3, H, W) to logits (N, C) float32."""
        return self.head(F.normalize(self.model.encode_image(images).float(), dim=-1))

    def embed(self, images: Images, **options: Any) -> Tensor:
        """Features (N, D) for `fit` and `probabilities`, to compute them once; as `clipkit.encode.store.embed_images`."""
        return embed_images(self.model, images, **options)

    def probabilities(self, images_or_features: "Images | Tensor", **options: Any) -> Tensor:
        """Of every class.

        Args:
            images_or_features: features (N, D) of unit length, or pictures as `embed_images` takes them.
            options: for pictures, of `embed_images`.

        Returns:
            (N, C) float32 on the CPU.
        """
        features = self._features(images_or_features, options)
        with torch.no_grad():
            return self.head(features.to(self.model.device)).softmax(dim=-1).cpu()

    def predict(self, images: "str | os.PathLike[str] | Image | Images", **options: Any) -> Any:
        """What is in a picture, or in each of many.

        Args:
            images: the path of a picture or a PIL image; or a folder, a list or a data set of them.
            options: of `clipkit.encode.store.embed_images`.

        Returns:
            One `Prediction` for one picture, else a list of them.

        Raises:
            ImageError: if one cannot be read.
        """
        single = hasattr(images, "getbands") or (
            isinstance(images, str | os.PathLike) and not Path(images).is_dir()
        )
        rows = self.probabilities([images] if single else images, **options)  # pyright: ignore[reportArgumentType]
        predictions = [Prediction(self.labels, row) for row in rows]
        return predictions[0] if single else predictions

    def fit(
        self,
        images_or_features: "Images | Tensor",
        labels: Tensor | Sequence[int] | Sequence[str] | None = None,
        method: str = "anchored",
        *,
        seed: int = 0,
        batch_size: int = 64,
        workers: int = 0,
        progress: bool = False,
        **options: Any,
    ) -> "ImageClassifier":
        """Fit the head on labelled pictures, in place, always from the zero-shot head: fits do not add up.

        Args:
            images_or_features: features (N, D) of unit length, or pictures as `embed_images` takes them.
            labels: N indices or names of classes; None for a data set that gives them with its pictures.
            method: one of `clipkit.classify.few_shot.METHODS`: "anchored", the default, which is never far worse than
                zero-shot, "linear_probe", "zero_shot_linear", "random_linear", "prompt_weights", "gaussian", "cache",
                "cache_finetuned".
            seed: of what is drawn.
            batch_size, workers, progress: of `embed_images`.
            options: of the method's function.

        Returns:
            The classifier itself; `provenance` has what was chosen, the pictures of each class, and those that a data
            set without `labels` could not read. If anything is wrong it is as it was.

        Raises:
            DataError: if the labels do not fit the pictures or the classes.
            ConfigError, ImageError: as `fit_head` and `embed_images`.
        """
        reading = {"batch_size": batch_size, "workers": workers, "progress": progress}
        check_method(method)  # before hours of encoding
        skipped = []
        if labels is None:
            if isinstance(images_or_features, Tensor):
                raise DataError("features need labels")
            found = extract_features(self.model, images_or_features, **reading)
            if found.labels is None:
                raise DataError("these pictures come without labels: pass labels, one for each")
            features, indices, skipped = found.features, found.labels, found.skipped
        else:
            indices = self._indices(labels)
            if isinstance(images_or_features, list | tuple) and len(images_or_features) != len(
                indices
            ):
                raise DataError(
                    f"{len(images_or_features)} pictures need as many labels, not {len(indices)}"
                )
            features = self._features(images_or_features, reading)
        if method == "prompt_weights":
            options["captions"] = self._captions()
        head, chosen = fit_head(features, indices, self.zero_shot_head, method, seed, **options)
        chosen.update(counts=indices.bincount(minlength=len(self.labels)).tolist())
        if skipped:
            chosen["skipped"] = [list(one) for one in skipped]
        self.head, self.provenance = head.to(self.model.device), chosen
        return self

    def add_classes(
        self, class_names: ClassNames, templates: Templates = TEMPLATES
    ) -> "ImageClassifier":
        """Add classes by their names, in place, without fitting again: the new ones are zero-shot.

        Args:
            class_names, templates: as in `zero_shot_weights`, of the new classes only.

        Raises:
            ConfigError: if one is there already, or if the head's logits are not on the scale of zero-shot ones.
        """
        labels, prompts = render(class_names, templates)
        if known := sorted(set(labels) & set(self.labels)):
            raise ConfigError(
                f"the classifier has classes of that name already: {', '.join(known)}"
            )
        weight = zero_shot_weights(self.model, dict(zip(labels, prompts, strict=True)), ["{}"]).to(
            self.model.device
        )
        scale, head = self.zero_shot_head.logit_scale, self.head
        every = CosineHead(torch.cat([self.zero_shot_head.weight, weight]), scale).eval()
        if isinstance(head, CosineHead):
            head = CosineHead(every.weight, head.logit_scale)
        elif isinstance(head, CacheHead):
            values = F.pad(head.values, (0, len(labels)))
            head = CacheHead(
                every.weight, head.logit_scale, head.keys, values, head.alpha, head.beta
            )
        elif "scale" in self.provenance:
            old = head.to_linear()
            rows = torch.cat([old.weight, self.provenance["scale"] * weight])
            head = LinearHead(rows, F.pad(old.bias, (0, len(labels))))
        else:
            raise ConfigError(
                f"a head fitted by {self.provenance['method']} has logits of a scale of its own, which those of new "
                "classes cannot be compared with: make a classifier of all names and fit again"
            )
        self.head, self.zero_shot_head = head.eval(), every
        if counts := self.provenance.get("counts"):
            self.provenance["counts"] = counts + [0] * len(labels)
        self.labels, self.prompts = self.labels + labels, self.prompts + prompts
        return self

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write all that is needed into a folder: the model, and both heads with labels, prompts and provenance."""
        folder = Path(folder)
        self.model.save_pretrained(folder / MODEL)
        save_head(self.zero_shot_head, folder / ZERO_SHOT, self.labels, {"prompts": self.prompts})
        save_head(self.head, folder / HEAD, self.labels, self.provenance)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], **options: Any) -> "ImageClassifier":
        """Read what `save` wrote, in eval mode. Options, such as `device`, and errors: those of `clipkit.load`."""
        folder = Path(folder)
        head, labels, provenance = load_head(folder / HEAD)
        start, names, about = load_head(folder / ZERO_SHOT)
        if names != labels or not isinstance(start, CosineHead) or "prompts" not in about:
            raise CorruptCheckpointError(
                f"{folder}: {ZERO_SHOT} and {HEAD} are not of one classifier"
            )
        model = CLIP.from_pretrained(folder / MODEL, **options)
        return cls(model, head, labels, start, about["prompts"], provenance).to(model.device)

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write the whole classifier as one file, from uint8 images (N, 3, H, W), N free, to probabilities (N, C).

        H and W are those of `model.visual.resolution`; resizing and cropping stay outside. It computes in float32,
        whatever the model does. Before the file gets its name, it is run on random images and must agree with that.

        Args:
            path: ends in `.onnx` (which needs `clipkit-torch[export]`), or in `.pt2` for `torch.export.load`.

        Raises:
            ConfigError: for another ending, or if a package is missing.
            ExportError: if the file's probabilities differ by more than 1e-4.
        """
        self.model.check_original("export the classifier of")
        export(
            Path(path),
            visual=self.model.visual,
            head=self.head,
            preprocess=self.model.preprocess,
            resolution=self.model.visual.resolution,
        )

    def _features(self, images_or_features: "Images | Tensor", options: dict[str, Any]) -> Tensor:
        if not isinstance(images_or_features, Tensor):
            return embed_images(self.model, images_or_features, **options)
        if images_or_features.ndim != 2:
            raise DataError(
                f"a tensor must be features (N, D), not {tuple(images_or_features.shape)}: see embed"
            )
        return images_or_features

    def _indices(self, labels: Tensor | Sequence[int] | Sequence[str]) -> Tensor:
        if isinstance(labels, Tensor):
            return labels
        index: Mapping[Any, int] = {label: i for i, label in enumerate(self.labels)}
        if unknown := sorted(
            {label for label in labels if isinstance(label, str) and label not in index}
        ):
            raise DataError(
                f"no class of this classifier is called {', '.join(map(repr, unknown[:5]))}"
            )
        return torch.tensor([index[label] if isinstance(label, str) else label for label in labels])

    def _captions(self) -> Tensor:
        """Features of all prompts, (C, K, D), zeros where a class has fewer than K."""
        features = embed_texts(self.model, [prompt for own in self.prompts for prompt in own])
        return nn.utils.rnn.pad_sequence(
            list(features.split([len(own) for own in self.prompts])), batch_first=True
        )
