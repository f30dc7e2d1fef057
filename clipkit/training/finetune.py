"""Fine-tuning: a classifier on labeled images, or both towers on captioned images."""

import copy
import os
from pathlib import Path
from typing import Any

from clipkit import distributed
from clipkit.classify.classifier import ImageClassifier
from clipkit.classify.encoder import as_model
from clipkit.classify.heads import LinearHead
from clipkit.clip import CLIP
from clipkit.data.labelled import Pairs
from clipkit.encode.store import extract_features
from clipkit.errors import DataError
from clipkit.files import check_output
from clipkit.prompts import TEMPLATES, Templates
from clipkit.training.batches import Augment, PairBatches
from clipkit.training.config import TrainConfig
from clipkit.training.interpolation import check_alpha, interpolate_weights
from clipkit.training.low_rank import finetune_low_rank, plan_changes
from clipkit.training.out import MODEL, check_run_folder
from clipkit.training.plan import (
    check_names,
    check_options,
    check_pairs,
    decide_alpha,
    decide_batch_size,
    plan,
)
from clipkit.training.stage import RUN, Stage, train_stage
from clipkit.training.tasks import ONE_PAIR, ClassificationTask


def finetune(
    model: CLIP | str | os.PathLike[str],
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
    alpha: float | None = None,
    lora: int | None = None,
    guard: bool = True,
    workers: int = 0,
    config: TrainConfig | None = None,
) -> ImageClassifier:
    """Fine-tune a classifier: its head, then the image tower with it, then half of the way back.

    The head is fitted by the method "anchored" from the zero-shot classifier, on fixed features.
    Then tower and head are trained together. The last stage interpolates between zero-shot and
    fine-tuned weights (WiSE-FT), which keeps more of what the model knew about other images. Images
    that cannot be read are skipped.

    With `lora` low-rank changes of both towers are trained in their place, as CLIP-LoRA does
    (2405.18541), and added to the weights in the end. Images that are held out first decide whether
    they are kept, or the fitted head alone, or zero-shot; `provenance["lora"]` says what was chosen
    and what each choice made of those images. This takes about twice the steps.

    Under `torchrun` all processes must call it, except with `head_only`: then no process waits for
    another.

    Args:
        model: to start from, or the name of one; it is not changed.
        pairs: images with labels, as `read_folder` gives them.
        out: folder for the classifier, which `ImageClassifier.load` reads, and in `run` for what
            `Trainer` leaves.
        class_names: one for each label; by default those of `pairs`.
        templates: of the zero-shot classifier.
        head_only: leave out the second stage.
        epochs: of the second stage, at least 1; by default 20, and with `lora` 500 steps for each
            image that a class has.
        batch_size: of the second stage, over all processes; by default 64, and 32 with `lora`.
        blocks: train only so many last blocks of the image tower; None for all that is not locked.
        lr: the peak of the learning rate; by default 5e-5 times the square of 512 / the text
            tower's width, 1e-3 at most: 5e-5 for ViT-B, 2e-5 for ViT-L. With `lora` 2e-4.
        alpha: 0 for zero-shot, 1 for fine-tuned weights; by default 0.5, and 1 with `lora`.
        lora: the rank of low-rank changes of queries, keys and values in all blocks, for example 2.
            None trains whole weights.
        guard: with `lora`, whether held-out images decide. Where each class has a single image none
            can be held out, and the head alone is kept. False keeps the changes in any case.
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
    decide_alpha(alpha, lora)
    check_pairs(pairs)
    check_output(out, "folder")
    names = check_names(pairs, class_names)
    model = as_model(model)
    options: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "alpha": alpha}
    options |= {"config": config}
    check_options(
        model, pairs, head_only=head_only, blocks=blocks, lora=lora, guard=guard, **options
    )
    if lora is not None:
        how = plan_changes(model, pairs, lora, guard=guard, workers=workers, **options)
        start = ImageClassifier.zero_shot(model, names, templates)
        classifier = finetune_low_rank(start, pairs, how, Path(out))
    else:
        stage = None if head_only else _plan_stage(model, pairs, out, blocks, workers, options)
        start = ImageClassifier.zero_shot(model, names, templates)
        shared = stage is not None and distributed.group() is not None
        _fit_head(start, pairs, workers, shared)
        classifier = _tune(start, stage, decide_alpha(alpha))
        classifier.provenance |= _about(stage, decide_alpha(alpha))
    if distributed.is_first():
        classifier.save(out)
    return classifier


def _plan_stage(
    model: CLIP,
    pairs: Pairs,
    out: str | os.PathLike[str],
    blocks: int | None,
    workers: int,
    options: dict[str, Any],
) -> Stage:
    """Return the stage that trains tower and head, once its folder is sure to take a run.

    Args:
        model, pairs, out, blocks, workers: as in `finetune`.
        options: its `epochs`, `batch_size`, `lr` and `config`, by name.
    """
    given: dict[str, Any] = {name: options[name] for name in ("epochs", "lr", "config")}
    size = decide_batch_size(options["batch_size"], pairs)
    config = plan(model, pairs, size, blocks=blocks, **given)
    batches = PairBatches(
        pairs,
        size,
        model.preprocess,
        tokenizer=None,
        augment=Augment(0.5, mirror=True),
        workers=workers,
        seed=config.seed,
    )
    stage = Stage(config, batches, Path(out) / RUN)
    check_run_folder(stage.out)
    distributed.start(model.device)
    return stage


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


def _tune(start: ImageClassifier, stage: Stage | None, alpha: float) -> ImageClassifier:
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
        train_stage(task, stage, start.model, start.labels, start.prompts)
    return ImageClassifier(
        interpolate_weights(start.model, tuned, alpha).eval(),
        interpolate_weights(zero_shot, head, alpha).eval(),
        start.labels,
        start.zero_shot_head,
        start.prompts,
        start.provenance,
        start.templates,
    )


def _about(stage: Stage | None, alpha: float) -> dict[str, Any]:
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
    check_pairs(pairs)
    check_output(out, "folder")
    check_output(Path(out) / MODEL, "folder")
    check_run_folder(Path(out) / RUN)
    size = decide_batch_size(batch_size, pairs)
    if size < 2:
        raise DataError(ONE_PAIR)
    config = plan(model, pairs, size, epochs=epochs, blocks=None, lr=lr, config=config)
    batches = PairBatches(
        pairs, size, model.preprocess, model.tokenizer, workers=workers, seed=config.seed
    )
    stage = Stage(config, batches, Path(out) / RUN)
    tuned = train_stage(copy.deepcopy(model).float(), stage, model)
    tuned = interpolate_weights(model, tuned, alpha).eval()
    if distributed.is_first():
        tuned.save_pretrained(Path(out) / MODEL)
    return tuned
