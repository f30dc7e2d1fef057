"""Fine-tuning: a classifier on labelled images, or both towers on captioned images."""

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

from torch import Tensor, nn

from clipkit import distributed
from clipkit.classify.classifier import ImageClassifier
from clipkit.classify.heads import Head, LinearHead
from clipkit.clip import CLIP
from clipkit.data.labelled import Pairs
from clipkit.encode.fingerprints import fingerprint, fingerprint_0_1_0
from clipkit.encode.store import extract_features
from clipkit.errors import ConfigError, DataError
from clipkit.prompts import TEMPLATES, Templates
from clipkit.training.batches import Augment, PairBatches
from clipkit.training.config import TrainConfig
from clipkit.training.loop import Trainer
from clipkit.training.optimizer import check_blocks
from clipkit.training.state import CHECKPOINT
from clipkit.training.tasks import ClassificationTask, Task

M = TypeVar("M", bound=nn.Module)

_EPOCHS = 20
_BATCH_SIZE = 64


@overload
def interpolate_weights(first: Head, second: Head, alpha: float) -> LinearHead: ...
@overload
def interpolate_weights(first: M, second: M, alpha: float) -> M: ...
def interpolate_weights(first: nn.Module, second: nn.Module, alpha: float) -> nn.Module:
    """Return a new module with weights between those of two modules (WiSE-FT, 2109.01903).

    Args:
        first, second: modules of the same weights, for example a zero-shot model and the same model
            fine-tuned; or two heads, each of which becomes a `LinearHead` first. The result is a
            copy of the second, and has its dtype.
        alpha: 0 gives the first, 1 the second.

    Raises:
        ConfigError: if alpha is not from 0 to 1, or the weights do not match.

    Example:
        model = interpolate_weights(zero_shot_model, tuned_model, alpha=0.5)
    """
    _check_alpha(alpha)
    if isinstance(first, Head) and isinstance(second, Head):
        return _interpolate_heads(first.to_linear(), second.to_linear(), alpha)
    between = copy.deepcopy(second)
    between.load_state_dict(_mix(first.state_dict(), second.state_dict(), alpha))
    return between


def _interpolate_heads(first: LinearHead, second: LinearHead, alpha: float) -> LinearHead:
    mixed = _mix(first.state_dict(), second.state_dict(), alpha)
    scale = None
    if first.scale is not None and second.scale is not None:
        scale = (1 - alpha) * first.scale + alpha * second.scale
    return LinearHead(mixed["weight"], mixed["bias"], scale)


def _mix(first: dict[str, Tensor], second: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Return tensors between those of two state dicts; whole numbers are the second's."""
    shapes = {name: value.shape for name, value in first.items()}
    if shapes != {name: value.shape for name, value in second.items()}:
        raise ConfigError("interpolate_weights needs two modules of the same weights")
    return {
        name: first[name].to(value).lerp(value, alpha) if value.is_floating_point() else value
        for name, value in second.items()
    }


def _check_alpha(alpha: float) -> None:
    if not 0 <= alpha <= 1:
        raise ConfigError(
            f"alpha must be from 0, for the first weights, to 1, for the second, not {alpha!r}"
        )


def finetune(
    model: CLIP,
    pairs: Pairs,
    out: str | os.PathLike[str],
    *,
    class_names: list[str] | None = None,
    templates: Templates = TEMPLATES,
    head_only: bool = False,
    epochs: int | None = None,
    batch_size: int | None = None,
    blocks: int | None = None,
    lr: float | None = None,
    alpha: float = 0.5,
    workers: int = 0,
    config: TrainConfig | None = None,
) -> ImageClassifier:
    """Fine-tune a classifier: its head, then the image tower with it, then half of the way back.

    The head is fitted by the method "anchored" from the zero-shot classifier, on fixed features.
    Then tower and head are trained together. The last stage interpolates between zero-shot and
    fine-tuned weights (WiSE-FT), which keeps more of what the model knew about other images. Images
    that cannot be read are skipped.

    Under `torchrun` all processes must call it, except with `head_only`: then no process waits for
    another.

    Args:
        model: to start from; it is not changed.
        pairs: images with labels, as `read_folder` gives them.
        out: folder for the classifier, which `ImageClassifier.load` reads, and in `run` for what
            `Trainer` leaves.
        class_names: one for each label; by default those of `pairs`.
        templates: of the zero-shot classifier.
        head_only: leave out the second stage.
        epochs: of the second stage, at least 1; by default 20.
        batch_size: of the second stage, over all processes; by default 64.
        blocks: train only so many last blocks of the image tower; None for all that is not locked.
        lr: the peak of the learning rate; by default 5e-5 times the square of 512 / the text
            tower's width, 1e-3 at most: 5e-5 for ViT-B, 2e-5 for ViT-L.
        alpha: 0 for zero-shot, 1 for fine-tuned weights.
        workers: processes that read ahead.
        config: of the second stage, in place of `epochs`, `blocks` and `lr`.

    Returns:
        The classifier, in eval mode.

    Raises:
        DataError: if `pairs` have no labels, or not all labels have a name.
        ConfigError: if an option is impossible, or would be ignored.

    Example:
        model = clipkit.CLIP.from_pretrained("tiny", device="cpu")
        pairs = clipkit.read_folder("photos")  # photos/cat/*.jpg, photos/dog/*.jpg
        classifier = clipkit.finetune(model, pairs, "out", epochs=5)
        classifier.predict("new.jpg").label
    """
    _check_alpha(alpha)
    names = _check_names(pairs, class_names)
    stage = None
    if head_only:
        given = {"epochs": epochs, "batch_size": batch_size, "blocks": blocks, "lr": lr}
        _refuse_given("head_only=True trains no tower", **given, config=config)
    else:
        size = _batch_size(batch_size, pairs)
        config = _plan(model, pairs, size, epochs=epochs, blocks=blocks, lr=lr, config=config)
        stage = _Stage(
            config,
            PairBatches(
                pairs,
                size,
                model.preprocess,
                tokenizer=None,
                augment=Augment(0.5, mirror=True),
                workers=workers,
                seed=config.seed,
            ),
            Path(out) / "run",
        )
        distributed.start(model.device)
    start = ImageClassifier.zero_shot(model, names, templates)
    _fit_head(start, pairs, workers, shared=stage is not None and distributed.group() is not None)
    classifier = _tune(start, stage, alpha)
    classifier.provenance |= _about(stage, alpha)
    if distributed.is_first():
        classifier.save(out)
    return classifier


@dataclass(frozen=True)
class _Stage:
    """Hold what the second stage needs: how to train, on what, and where to leave the run."""

    config: TrainConfig
    batches: PairBatches
    out: Path


def _fit_head(start: ImageClassifier, pairs: Pairs, workers: int, shared: bool) -> None:
    """Fit a zero-shot classifier's head, in place, on the images that can be read.

    Args:
        start: the classifier.
        pairs: images with labels.
        workers: processes that read ahead.
        shared: encode a share of the images in each process of the group. Every process must call
            this then.
    """
    rows = list(zip(pairs.files, pairs.labels or [], strict=True))
    found = extract_features(start.model, rows, workers=workers, shared=shared)
    start.fit(found.features, found.labels)
    if found.skipped:
        start.provenance["skipped"] = [list(problem) for problem in found.skipped]


def _tune(start: ImageClassifier, stage: _Stage | None, alpha: float) -> ImageClassifier:
    """Return a classifier between zero-shot and fine-tuned, in eval mode.

    Args:
        start: with a fitted head; it is not changed.
        stage: of training tower and head; None to leave it out.
        alpha: 0 for zero-shot, 1 for fine-tuned.
    """
    scale = start.head.scale
    assert scale is not None  # heads of the method "anchored" have one
    zero_shot = LinearHead(scale * start.zero_shot_head.weight)  # as sure as the fitted head
    tuned = copy.deepcopy(start.model).float()
    head = start.head.to_linear()
    if stage is not None:
        task = ClassificationTask(tuned, head)
        _train(task, stage, start.model, start.labels, start.prompts)
    return ImageClassifier(
        interpolate_weights(start.model, tuned, alpha).eval(),
        interpolate_weights(zero_shot, head, alpha).eval(),
        start.labels,
        start.zero_shot_head,
        start.prompts,
        start.provenance,
        start.templates,
    )


def _train(task: CLIP | Task, stage: _Stage, start: CLIP, *about: object) -> CLIP:
    """Train a task, or go on from the checkpoint of the same run.

    Args:
        task: with a copy of the start.
        stage: how to train, and on what.
        start: the model that the run is known by.
        about: what else it is known by.
    """
    former: list[str] = []
    if (stage.out / CHECKPOINT).exists():  # or it would be computed for nothing
        former = [fingerprint_0_1_0(start, *about)]
    trainer = Trainer(
        task,
        stage.batches,
        stage.config,
        stage.out,
        device=start.device,
        identity=fingerprint(start, *about),
        former_identities=former,
    )
    return trainer.fit()


def _about(stage: _Stage | None, alpha: float) -> dict[str, Any]:
    """Return what is to be known about how a classifier was fine-tuned."""
    steps = 0 if stage is None else stage.config.steps
    return {"method": "finetune", "alpha": alpha, "steps": steps}


def finetune_captions(
    model: CLIP,
    pairs: Pairs,
    out: str | os.PathLike[str],
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    alpha: float = 0.5,
    workers: int = 0,
    config: TrainConfig | None = None,
) -> CLIP:
    """Fine-tune both towers on captioned images by the contrastive loss, then go half of it back.

    Under `torchrun` all processes must call it.

    Args:
        model: to start from; it is not changed.
        pairs: images with captions, as `read_table` gives them.
        out: folder for the model, in `model`, and in `run` for what `Trainer` leaves.
        epochs, batch_size, lr, alpha, workers: as in `finetune`.
        config: how to train, in place of `epochs` and `lr`.

    Returns:
        The model between the start and the fine-tuned weights (WiSE-FT), in eval mode.

    Raises:
        ConfigError: if an option is impossible, or would be ignored.
        DataError: if `batch_size` is impossible.

    Example:
        model = clipkit.CLIP.from_pretrained("tiny", device="cpu")
        pairs = clipkit.read_table("photos/captions.csv")
        model = clipkit.finetune_captions(model, pairs, "out", epochs=5)
    """
    _check_alpha(alpha)
    size = _batch_size(batch_size, pairs)
    config = _plan(model, pairs, size, epochs=epochs, blocks=None, lr=lr, config=config)
    batches = PairBatches(
        pairs, size, model.preprocess, model.tokenizer, workers=workers, seed=config.seed
    )
    stage = _Stage(config, batches, Path(out) / "run")
    tuned = _train(copy.deepcopy(model).float(), stage, model)
    tuned = interpolate_weights(model, tuned, alpha).eval()
    if distributed.is_first():
        tuned.save_pretrained(Path(out) / "model")
    return tuned


def _check_names(pairs: Pairs, class_names: list[str] | None) -> list[str]:
    """Return a name for each label."""
    names = pairs.class_names if class_names is None else class_names
    if not pairs.labels or names is None or len(names) <= max(pairs.labels):
        raise DataError("finetune needs images with labels, and a class name for each label")
    return names


def _refuse_given(reason: str, **options: object) -> None:
    """Raise `ConfigError` if an option was given that would be ignored for this reason."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ConfigError(f"{reason}: {' and '.join(given)} would be ignored, leave it out")


def _batch_size(given: int | None, pairs: Pairs) -> int:
    return min(_BATCH_SIZE if given is None else given, len(pairs))


def _plan(
    model: CLIP,
    pairs: Pairs,
    batch_size: int,
    *,
    epochs: int | None,
    blocks: int | None,
    lr: float | None,
    config: TrainConfig | None,
) -> TrainConfig:
    """Return how to train: a config as it was given, or one made of the other options.

    The default rate is a tenth of that of training from scratch, or less, and it is lower still
    near the input, where features are general.
    """
    if config is not None:
        _refuse_given("config= says how to train", epochs=epochs, blocks=blocks, lr=lr)
        return config
    epochs = _EPOCHS if epochs is None else epochs
    if not isinstance(epochs, int) or epochs < 1:
        raise ConfigError(
            f"epochs must be a positive integer, not {epochs!r}: with finetune, head_only=True "
            "trains the head alone"
        )
    if blocks is not None:
        check_blocks(model.visual, blocks)
    if lr is None:
        lr = min(1e-3, 5e-5 * (512 / model.config.text.width) ** 2)
    steps_per_epoch = len(pairs) // max(1, batch_size)
    return TrainConfig(
        steps=epochs * steps_per_epoch,
        lr=lr,
        weight_decay=0.1,
        layer_decay=0.8,
        image_blocks=blocks,
        log_every=10,
        save_every=200,
    )
