"""Fine-tuning: a classifier on labeled images, or both towers on captioned images."""

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipkit import distributed
from clipkit.classify.classifier import ImageClassifier
from clipkit.classify.heads import LinearHead
from clipkit.clip import CLIP
from clipkit.data.labelled import Pairs
from clipkit.encode.fingerprints import fingerprint, fingerprint_0_1_0
from clipkit.encode.store import extract_features
from clipkit.errors import ConfigError, DataError
from clipkit.files import check_output
from clipkit.prompts import TEMPLATES, Templates, as_words
from clipkit.training.batches import Augment, PairBatches
from clipkit.training.config import TrainConfig
from clipkit.training.interpolation import check_alpha, interpolate_weights
from clipkit.training.loop import Trainer
from clipkit.training.optimizer import check_blocks
from clipkit.training.out import MODEL, check_run_folder
from clipkit.training.state import CHECKPOINT
from clipkit.training.tasks import ONE_PAIR, ClassificationTask, Task

RUN = "run"  # the folder in `out` for what a Trainer leaves

_EPOCHS = 20
_BATCH_SIZE = 64


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
        OutputError: if `out` cannot be written. It is checked before the work.
        DataError: if `pairs` have no labels, or not all labels have a name.
        ConfigError: if an option is impossible, or would be ignored.

    Example:
        model = clipkit.CLIP.from_pretrained("tiny", device="cpu")
        pairs = clipkit.read_folder("photos")  # photos/cat/*.jpg, photos/dog/*.jpg
        classifier = clipkit.finetune(model, pairs, "out", epochs=5)
        classifier.predict("new.jpg").label
    """
    check_alpha(alpha)
    _check_pairs(pairs)
    check_output(out, "folder")
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
            Path(out) / RUN,
        )
        check_run_folder(stage.out)
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
    start.fit(found)


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


def _train(
    task: CLIP | Task,
    stage: _Stage,
    start: CLIP,
    labels: list[str] | None = None,
    prompts: list[list[str]] | None = None,
) -> CLIP:
    """Train a task, or go on from the checkpoint of the same run.

    Args:
        task: with a copy of the start.
        stage: how to train, and on what.
        start: the model that the run is known by.
        labels, prompts: of a classifier; the run is known by them as well.
    """
    about = [] if labels is None else [labels, prompts]
    former: list[str] = []
    if (stage.out / CHECKPOINT).exists():  # or they would be computed for nothing
        former = [fingerprint_0_1_0(start, *about)]
        if labels is not None:  # those of folders had spaces then
            former.append(fingerprint_0_1_0(start, [*map(as_words, labels)], prompts))
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
        OutputError: if `out` cannot be written. It is checked before the work.
        ConfigError: if an option is impossible, or would be ignored.
        DataError: if `batch_size` is impossible, or there is a single image.

    Example:
        model = clipkit.CLIP.from_pretrained("tiny", device="cpu")
        pairs = clipkit.read_table("photos/captions.csv")
        model = clipkit.finetune_captions(model, pairs, "out", epochs=5)
    """
    check_alpha(alpha)
    _check_pairs(pairs)
    check_output(out, "folder")
    check_output(Path(out) / MODEL, "folder")
    check_run_folder(Path(out) / RUN)
    size = _batch_size(batch_size, pairs)
    if size < 2:
        raise DataError(ONE_PAIR)
    config = _plan(model, pairs, size, epochs=epochs, blocks=None, lr=lr, config=config)
    batches = PairBatches(
        pairs, size, model.preprocess, model.tokenizer, workers=workers, seed=config.seed
    )
    stage = _Stage(config, batches, Path(out) / RUN)
    tuned = _train(copy.deepcopy(model).float(), stage, model)
    tuned = interpolate_weights(model, tuned, alpha).eval()
    if distributed.is_first():
        tuned.save_pretrained(Path(out) / MODEL)
    return tuned


def check_options(
    model: CLIP,
    pairs: Pairs,
    *,
    head_only: bool,
    epochs: int | None,
    batch_size: int | None,
    blocks: int | None,
    lr: float | None,
    alpha: float,
) -> None:
    """Raise what `finetune` and `finetune_captions` would, before any image is encoded.

    Args:
        model, pairs: to train, on what: images with labels for `finetune`.
        head_only, epochs, batch_size, blocks, lr, alpha: as in `finetune`.
    """
    check_alpha(alpha)
    if head_only:
        given = {"epochs": epochs, "batch_size": batch_size, "blocks": blocks, "lr": lr}
        _refuse_given("head_only=True trains no tower", **given)
        return
    size = _batch_size(batch_size, pairs)
    if size < 2 and not pairs.class_names:
        raise DataError(ONE_PAIR)
    _plan(model, pairs, size, epochs=epochs, blocks=blocks, lr=lr, config=None)


def _check_pairs(pairs: object) -> None:
    """Raise `ConfigError` for what only says where images are."""
    if not isinstance(pairs, Pairs):
        raise ConfigError(
            f"fine-tuning takes Pairs, not {pairs!r:.99}: read them by clipkit.read_pairs(FOLDER)"
        )


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
    """Return the size of a batch: at most all images."""
    if given is None:
        given = _BATCH_SIZE
    if not isinstance(given, int) or given < 1 or not len(pairs):
        raise DataError(
            f"batch_size {given!r} must be an integer of at least 1, and there must be images: "
            f"there are {len(pairs)}"
        )
    return min(given, len(pairs))


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
    steps_per_epoch = len(pairs) // batch_size
    return TrainConfig(
        steps=epochs * steps_per_epoch,
        lr=lr,
        weight_decay=0.1,
        layer_decay=0.8,
        image_blocks=blocks,
        log_every=10,
        save_every=200,
    )
