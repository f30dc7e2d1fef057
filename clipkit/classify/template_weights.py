"""Weigh the templates of a zero-shot classifier by images without labels (ZPE, 2302.06235)."""

import logging
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.classify.classifier import ImageClassifier
from clipkit.classify.heads import CosineHead
from clipkit.classify.inputs import Inputs, features_and_paths
from clipkit.classify.reading import Reading
from clipkit.classify.zero_shot import embed_prompts
from clipkit.clip import CLIP
from clipkit.errors import ConfigError, DataError
from clipkit.prompts import Template

_LOG = logging.getLogger("clipkit")


def weigh_templates(
    classifier: ImageClassifier,
    unlabelled: Inputs,
    *,
    reference: "Inputs | None" = None,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool = False,
) -> ImageClassifier:
    """Return a zero-shot classifier in which templates count as much as they suit the images.

    The score of a template is the mean over the images of their largest logit, once each class's
    mean logit is taken away: a template that any image likes says nothing. A softmax of the scores
    gives the weights.

    Args:
        classifier: zero-shot, of at least two templates; it is not changed.
        unlabelled: images of the kind to classify, or features (N, D), as `probabilities` takes
            them. Labels are not needed, and not looked at.
        reference: other images, of all kinds. The logits' means over them and over `unlabelled`
            count half each then, as in the paper, which takes 20,000 images of LAION. Without them
            the mean over `unlabelled` counts alone.
        batch_size, workers, progress: as in `ImageClassifier.embed`, for images.

    Returns:
        A new classifier of the same model, labels, prompts and templates. Its provenance has the
        weights, in the order of the templates. `add_classes` weighs the prompts of new classes
        alike, so weigh after it. A calibration is not kept, and the log "clipkit" says so.

    Raises:
        ConfigError: if the classifier is fitted or adapted, or does not have the same templates,
            two at least, for all classes.
        ImageError, DataError: as in `ImageClassifier.probabilities`; one image is needed at least.

    Example:
        classifier = clipkit.ImageClassifier.zero_shot("tiny", ["cat", "dog"], "imagenet")
        classifier = clipkit.weigh_templates(classifier, "photos/")
    """
    count = _count_templates(classifier)
    model = classifier.model
    reading = Reading(batch_size, workers, progress)
    images = _features(model, unlabelled, reading)
    others = None if reference is None else _features(model, reference, reading)
    texts = _texts_of_templates(classifier, count)  # (P, C, D)
    scale = model.logit_scale.detach().float().exp().cpu()
    with torch.autocast("cpu", enabled=False):
        weights = score_templates(images, texts, scale, others).softmax(dim=0)  # (P,)
        mixed = F.normalize(torch.einsum("p,pcd->cd", weights, texts), dim=-1)
    heads = [CosineHead(mixed, model.logit_scale).to(model.device).eval() for _ in range(2)]
    if classifier.calibration is not None:
        _LOG.warning("templates were weighed, so the calibration is not kept: calibrate again")
    provenance: dict[str, Any] = {"method": "zero_shot", "template_weights": weights.tolist()}
    return ImageClassifier(
        model,
        heads[0],
        classifier.labels,
        heads[1],
        classifier.prompts,
        provenance,
        classifier.templates,
    )


def score_templates(
    images: Tensor, texts: Tensor, scale: Tensor, reference: Tensor | None = None
) -> Tensor:
    """Return the score of each template.

    Args:
        images: features (N, D), of unit length, on the CPU.
        texts: for each template the features of the classes, (P, C, D).
        scale: (), what cosines are multiplied by.
        reference: features (M, D) of other images; see `weigh_templates`.

    Returns:
        (P,) float32.
    """
    # The mean of logits is the logit of the mean, so the images of reference count as one.
    common = images.float().mean(dim=0)  # (D,)
    if reference is not None:
        common = (common + reference.float().mean(dim=0)) / 2
    rows = scale * (images.float() - common)  # (N, D)
    return torch.stack([(rows @ own.T).amax(dim=1).mean() for own in texts.float()])


def _features(model: CLIP, images: Inputs, reading: Reading) -> Tensor:
    """Return features (N, D) on the CPU, or raise `DataError` if there is no image."""
    features, _ = features_and_paths(model, images, reading)
    if len(features) == 0:
        raise DataError("there is no image to weigh templates by: pass one at least")
    return features.cpu()


def _count_templates(classifier: ImageClassifier) -> int:
    """Return how many templates a classifier has, or raise `ConfigError` if it cannot be used."""
    if not isinstance(cast("object", classifier), ImageClassifier):
        raise ConfigError(
            f"weigh_templates takes a classifier and then images, not {classifier!r:.60} first: "
            "weigh_templates(classifier, images)"
        )
    if classifier.provenance.get("method") != "zero_shot" or "adapted" in classifier.provenance:
        raise ConfigError(
            "weigh_templates takes a zero-shot classifier, and this one is "
            f"{classifier.provenance.get('method')}: weigh first, then fit or adapt what comes out"
        )
    templates = classifier.templates
    if not isinstance(templates, tuple) or len(templates) < 2:
        raise ConfigError(
            f"weigh_templates needs templates that all classes share, two at least, not "
            f"{templates!r:.99}: make the classifier with a list of them, or with a prompt set"
        )
    for label, prompts in zip(classifier.labels, classifier.prompts, strict=True):
        if not _are_of(prompts, templates):
            raise ConfigError(
                f"weigh_templates needs templates that all classes share, and the prompts of "
                f"{label!r:.60} are of others ({prompts[0]!r:.60}): add its class without "
                "templates=, which takes those that are there"
            )
    return len(templates)


def _are_of(prompts: Sequence[str], templates: Sequence[Template]) -> bool:
    """Return whether the prompts of a class are each of its names in each template.

    What name a function was given cannot be told, so functions are taken on trust.
    """
    count = len(templates)
    for start in range(0, len(prompts), count):
        pairs = zip(templates, prompts[start : start + count], strict=False)
        names = {_name_in(prompt, one) for one, prompt in pairs if isinstance(one, str)}
        if None in names or len(names) > 1:
            return False
    return len(prompts) % count == 0


def _name_in(prompt: str, template: str) -> str | None:
    """Return what stands where a template has `{}`; None if the prompt is of another template."""
    before, after = template.split("{}")
    is_own = prompt.startswith(before) and prompt.endswith(after)
    return prompt[len(before) : len(prompt) - len(after)] if is_own else None


def _texts_of_templates(classifier: ImageClassifier, count: int) -> Tensor:
    """Return the features of the classes by each template, (P, C, D) float32, of unit length.

    Where a class has several names, they are averaged.
    """
    per_class: list[Tensor] = []
    padded = embed_prompts(classifier.model, classifier.prompts)  # (C, K, D)
    for own, prompts in zip(padded, classifier.prompts, strict=True):
        # (names x P, D) -> (names, P, D) -> (P, D)
        named = own[: len(prompts)].reshape(-1, count, own.shape[-1]).mean(dim=0)
        per_class.append(F.normalize(named, dim=-1))
    return torch.stack(per_class, dim=1)  # (P, C, D)
