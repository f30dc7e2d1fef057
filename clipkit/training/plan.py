"""Plan how to fine-tune: options are checked before the work, and become a `TrainConfig`."""

import math

from clipkit.clip import CLIP
from clipkit.data.labelled import Pairs
from clipkit.errors import ConfigError, DataError
from clipkit.models.low_rank import check_model
from clipkit.training.config import TrainConfig
from clipkit.training.interpolation import check_alpha
from clipkit.training.optimizer import check_blocks
from clipkit.training.tasks import ONE_PAIR

_EPOCHS = 20
_BATCH_SIZE = 64

# CLIP-LoRA's setting for all data sets (2405.18541, section 5).
_LORA_BATCH_SIZE = 32
_LORA_STEPS = 500  # for each image of a class
_LORA_RATE = 2e-4
_LORA_DECAY = 0.01


def check_options(
    model: CLIP,
    pairs: Pairs,
    *,
    head_only: bool = False,
    epochs: int | None = None,
    batch_size: int | None = None,
    blocks: int | None = None,
    lr: float | None = None,
    alpha: float | None = None,
    lora: int | None = None,
    guard: bool = True,
    config: TrainConfig | None = None,
) -> None:
    """Raise what `finetune` and `finetune_captions` would, before any image is encoded.

    Args:
        model, pairs: to train, on what: images with labels for `finetune`.
        head_only, epochs, batch_size, blocks, lr, alpha, lora, guard, config: as in `finetune`.
    """
    decide_alpha(alpha, lora)
    if not guard and lora is None:
        raise ConfigError("guard=False would be ignored without lora=: leave it out")
    if head_only:
        given = {"epochs": epochs, "batch_size": batch_size, "blocks": blocks, "lr": lr}
        refuse_given("head_only=True trains no tower", **given, lora=lora, config=config)
        return
    if lora is not None:
        refuse_given("lora= trains low-rank changes of all blocks", blocks=blocks)
        _check_rank(lora)
        check_model(model, lora)
        plan_low_rank(pairs, epochs=epochs, batch_size=batch_size, lr=lr, config=config)
        return
    size = decide_batch_size(batch_size, pairs)
    if size < 2 and not pairs.class_names:
        raise DataError(ONE_PAIR)
    plan(model, pairs, size, epochs=epochs, blocks=blocks, lr=lr, config=config)


def decide_alpha(alpha: float | None, lora: int | None = None) -> float:
    """Return the place between the start and what was trained: by default half, all with `lora`.

    Raises:
        ConfigError: if it is not from 0 to 1.
    """
    if alpha is None:
        return 0.5 if lora is None else 1.0
    check_alpha(alpha)
    return alpha


def _check_rank(lora: object) -> None:
    """Raise `ConfigError` unless this is a rank of changes that can be trained."""
    if not isinstance(lora, int) or isinstance(lora, bool) or lora < 1:
        raise ConfigError(
            f"lora must be a rank of at least 1, such as 2, not {lora!r}: head_only=True trains "
            "no tower"
        )


def check_pairs(pairs: object) -> None:
    """Raise `ConfigError` for what only says where images are."""
    if not isinstance(pairs, Pairs):
        raise ConfigError(
            f"fine-tuning takes Pairs, not {pairs!r:.99}: read them by clipkit.read_pairs(FOLDER)"
        )


def check_names(pairs: Pairs, class_names: list[str] | None) -> list[str]:
    """Return a name for each label."""
    names = pairs.class_names if class_names is None else class_names
    if not pairs.labels or names is None or len(names) <= max(pairs.labels):
        raise DataError("finetune needs images with labels, and a class name for each label")
    return names


def refuse_given(reason: str, **options: object) -> None:
    """Raise `ConfigError` if an option was given that would be ignored for this reason."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ConfigError(f"{reason}: {' and '.join(given)} would be ignored, leave it out")


def decide_batch_size(given: int | None, pairs: Pairs, default: int = _BATCH_SIZE) -> int:
    """Return the size of a batch: at most all images."""
    if given is None:
        given = default
    if not isinstance(given, int) or given < 1 or not len(pairs):
        raise DataError(
            f"batch_size {given!r} must be an integer of at least 1, and there must be images: "
            f"there are {len(pairs)}"
        )
    return min(given, len(pairs))


def plan(
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
        refuse_given("config= says how to train", epochs=epochs, blocks=blocks, lr=lr)
        return config
    epochs = _EPOCHS if epochs is None else epochs
    _check_epochs(epochs)
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


def plan_low_rank(
    pairs: Pairs,
    *,
    epochs: int | None,
    batch_size: int | None,
    lr: float | None,
    config: TrainConfig | None,
) -> tuple[int, TrainConfig]:
    """Return the size of a batch and how to train low-rank changes: as CLIP-LoRA does, by default.

    Raises:
        DataError, ConfigError: if an option is impossible, or would be ignored.
    """
    size = decide_batch_size(batch_size, pairs, _LORA_BATCH_SIZE)
    if config is not None:
        refuse_given("config= says how to train", epochs=epochs, lr=lr)
        return size, config
    if epochs is None:
        classes = len(set(pairs.labels or [0]))
        steps = _LORA_STEPS * math.ceil(len(pairs) / classes)
    else:
        _check_epochs(epochs)
        steps = epochs * (len(pairs) // size)
    config = TrainConfig(
        steps=steps,
        lr=_LORA_RATE if lr is None else lr,
        weight_decay=_LORA_DECAY,
        betas=(0.9, 0.999),
        warm_up=0,
        clip_grad=None,
        log_every=10,
        save_every=200,
    )
    return size, config


def _check_epochs(epochs: object) -> None:
    """Raise `ConfigError` unless there is a pass over the images at least."""
    if not isinstance(epochs, int) or epochs < 1:
        raise ConfigError(
            f"epochs must be a positive integer, not {epochs!r}: with finetune, head_only=True "
            "trains the head alone"
        )
