"""Train from a small file, and fine-tune on a folder: `clipkit train` and `clipkit finetune`."""

import logging
import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from clipkit import distributed
from clipkit.checkpoints.load import published_config
from clipkit.classify.evaluate import Evaluation, classifier_accuracy, retrieval, zero_shot
from clipkit.clip import CLIP
from clipkit.config import CLIPConfig
from clipkit.data.labelled import Pairs, read_folder, read_pairs
from clipkit.errors import ConfigError, DataError
from clipkit.fields import build, check_positive
from clipkit.files import address_scheme, check_output, read_json, spell_path
from clipkit.plurals import number_of
from clipkit.prompts import TEMPLATES, Templates, check_templates, name_ids
from clipkit.training.batches import Augment, Batches, PairBatches
from clipkit.training.config import TrainConfig
from clipkit.training.finetune import finetune, finetune_captions
from clipkit.training.loop import Evaluate, Trainer
from clipkit.training.out import check_run_folder
from clipkit.training.plan import check_options, decide_alpha
from clipkit.training.shards import ShardBatches
from clipkit.training.tasks import ONE_PAIR
from clipkit.visible import visible

_TEXTS = {"data": False, "out": False, "init": True, "evaluate": True}  # name -> may it be None
_SCHEMES = {"data": "https", "init": "hf-hub"}  # addresses that the fields take beside paths
_SHARDS = (".tar", ".tgz", ".tar.gz")
_RANDOM = "random weights"  # what a run that starts from them is known by

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Hold the file that `clipkit train` reads, as JSON; paths in it are relative to it.

    Args:
        data: a folder of class folders, a table of captions (.csv, .tsv, .jsonl), or tar shards.
        out: folder for the run.
        batch_size: pairs of a step, over all processes.
        train: fields of TrainConfig.
        model: a published name, for its architecture, or a CLIPConfig as a mapping: to start from
            random weights.
        init: a name or path of weights to start from, in place of `model`.
        templates: captions of class folders, as `zero_shot_weights` takes them: a list, or the name
            of a prompt set.
        augment: fields of Augment.
        workers: processes that read ahead.
        evaluate: a folder of class folders. The zero-shot accuracy on them is logged every
            `evaluate_every` steps; images that cannot be read are skipped and named.

    Raises:
        ConfigError: that names what is wrong.

    Example:
        {"data": "photos/captions.csv", "out": "run", "batch_size": 64, "init": "tiny",
         "train": {"steps": 1000, "lr": 1e-4}}
    """

    data: str
    out: str
    batch_size: int
    train: TrainConfig
    model: str | CLIPConfig | None = None
    init: str | None = None
    templates: Templates = TEMPLATES
    augment: Augment = field(default_factory=Augment)
    workers: int = 0
    evaluate: str | None = None

    def __post_init__(self) -> None:
        check_positive(self, "batch_size")
        if self.batch_size == 1:
            raise ConfigError(f"RunConfig.batch_size is 1, but {ONE_PAIR}")
        for name, may_be_none in _TEXTS.items():
            value = getattr(self, name)
            if not isinstance(value, str) and not (value is None and may_be_none):
                raise ConfigError(f"RunConfig.{name} must be a text, not {value!r}")
            if value == "":
                raise ConfigError(f"RunConfig.{name} is empty; '.' is the folder of the file")
            if value is not None:
                _check_path(name, value)
        if not isinstance(self.model, str | CLIPConfig | None):
            raise ConfigError(
                f"RunConfig.model must be a name or the fields of a CLIPConfig, not {self.model!r}"
            )
        object.__setattr__(self, "templates", check_templates(self.templates))
        if (self.model is None) == (self.init is None):
            raise ConfigError(
                "RunConfig needs either model, to start from random weights, or init, to start "
                "from others"
            )

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "RunConfig":
        """Read and check the file.

        Raises:
            ConfigError: that names what is wrong.
        """
        path = Path(spell_path(path, "a run file", error=ConfigError))
        values = read_json(path, error=ConfigError)
        for name in ("train", "augment"):
            if not isinstance(values.get(name, {}), dict):
                raise ConfigError(f"{path}: {name} must be an object, not {values[name]!r}")
        if "train" in values:
            values["train"] = TrainConfig.from_dict(values["train"])
        if "augment" in values:
            values["augment"] = build(Augment, values["augment"])
        if isinstance(values.get("model"), dict):
            values["model"] = CLIPConfig.from_dict(values["model"])
        config = build(cls, values)
        return replace(config, **_find_beside(path, config))


def _check_path(name: str, value: str) -> None:
    """Raise `ConfigError` if the value of a field is an address that it does not take."""
    if "\0" in value:
        raise ConfigError(f"RunConfig.{name} must be a path, not {value!r:.99}: it has a null byte")
    scheme = address_scheme(value)
    if scheme not in (None, _SCHEMES.get(name)):
        raise ConfigError(
            f"RunConfig.{name} must be a path, not the address {value!r:.99}: nothing is read from "
            f"{scheme}:, download it first. A path with a colon begins with ./"
        )


def _find_beside(path: Path, config: RunConfig) -> dict[str, str]:
    """Return the fields of a config that are paths, taken from the folder of the file `path`."""
    beside: dict[str, str] = {}
    for name in _TEXTS:
        value = getattr(config, name)
        if value and address_scheme(value) is None:
            beside[name] = os.path.join(path.parent, os.path.expanduser(value))
    if config.init == "tiny" or not os.path.exists(beside.get("init", "")):
        beside.pop("init", None)  # it is the name of a model
    return beside


def train(config: RunConfig, device: str | None = None) -> CLIP:
    """Train as a config says, or go on where an earlier run of it stopped.

    Args:
        config: what to train on what, and how.
        device: as in `clipkit.load`.

    Returns:
        The model, in eval mode; `config.out` holds it too, in `model`.

    Raises:
        OutputError: if `config.out` cannot be written, or another process is writing there.
        TrainingError: if `config.out` holds a run of another start, other data or another config.
        DataError, ConfigError: if there is nothing to train on, or it does not go together.

    Example:
        model = train(RunConfig.read(Path("run.json")))
    """
    check_run_folder(config.out)
    model = _start_model(config)
    # The seed of random weights is in the config. Their bits may differ from machine to machine.
    is_random = config.init is None
    trainer = Trainer(
        model,
        _make_batches(config, model),
        config.train,
        config.out,
        evaluate=_make_evaluate(config),
        device=device,
        identity=_RANDOM if is_random else "",
        former_identities=[""] if is_random else [],
    )
    return trainer.fit()


def _start_model(config: RunConfig) -> CLIP:
    """Return the model to start from, in float32 on the CPU."""
    if config.init is not None:
        return CLIP.from_pretrained(config.init, device="cpu", dtype=torch.float32)
    torch.manual_seed(config.train.seed)
    if isinstance(config.model, str):
        return CLIP(published_config(config.model))
    assert config.model is not None  # RunConfig has asked for one of the two
    return CLIP(config.model)


def _make_batches(config: RunConfig, model: CLIP) -> Batches:
    if config.data.lower().endswith(_SHARDS):
        return ShardBatches(
            config.data,
            config.batch_size,
            model.preprocess,
            model.tokenizer,
            augment=config.augment,
            workers=config.workers,
            seed=config.train.seed,
        )
    return PairBatches(
        read_pairs(config.data, config.templates),
        config.batch_size,
        model.preprocess,
        model.tokenizer,
        augment=config.augment,
        workers=config.workers,
        seed=config.train.seed,
    )


def _make_evaluate(config: RunConfig) -> Evaluate | None:
    """Return what measures the zero-shot accuracy on the folder of the config, if it has one."""
    if config.evaluate is None:
        return None
    held_out = read_folder(config.evaluate)
    known: set[str] = set()

    def evaluate(model: CLIP) -> dict[str, float]:
        found = zero_shot(model, held_out, templates=config.templates, workers=config.workers)
        _tell_skipped(found, known)
        return found.figures

    return evaluate


def _tell_skipped(evaluation: Evaluation, known: set[str]) -> None:
    """Write on stderr which images could not be read, each once."""
    from tqdm import tqdm

    problems = [problem for _, problem in evaluation.skipped if problem not in known]
    known.update(problems)
    if distributed.is_first():
        for problem in problems:
            # Above a bar, if there is one.
            tqdm.write(f"skipped: {visible(problem)}", file=sys.stderr)


def finetune_from(
    pairs: Pairs,
    out: Path,
    model: CLIP,
    *,
    held_out: float = 0.1,
    head_only: bool = False,
    epochs: int | None = None,
    batch_size: int | None = None,
    blocks: int | None = None,
    lr: float | None = None,
    alpha: float | None = None,
    lora: int | None = None,
    workers: int = 0,
) -> dict[str, tuple[float, float]]:
    """Fine-tune on a part of some images, and measure on the share that is held out.

    Args:
        pairs: images with labels or captions, as `read_pairs` gives them.
        out: folder for the result.
        model: to start from.
        held_out: share of the images to measure on, chosen at random.
        head_only, blocks, lora: as in `finetune`; for class folders alone.
        epochs, batch_size, lr, alpha, workers: as in `finetune` and `finetune_captions`.

    Returns:
        For each figure its value before and after: accuracy with classes, recall at 1 and 5 with
        captions. Images that cannot be read are named on stderr, and not counted.

    Raises:
        OutputError: if `out` cannot be written. It is checked before the work.
        DataError: if that share leaves nothing to train on, or nothing to measure on.
        ConfigError: if an option is impossible, or would be ignored.
    """
    check_output(out, "folder")
    training, rest = _hold_out(_name_classes(pairs), held_out)
    if not training.class_names:
        _refuse_class_options(head_only=head_only or None, blocks=blocks, lora=lora)
    options: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "alpha": alpha}
    of_classes: dict[str, Any] = {"head_only": head_only, "blocks": blocks, "lora": lora}
    check_options(model, training, **options, **of_classes)
    if distributed.is_first():
        _logger.info(
            "Training on %d images; %d are held out to measure on.", len(training), len(rest)
        )
    known: set[str] = set()
    # The start is measured first, so that data without any sound image ends before the training.
    if training.class_names:
        before = zero_shot(model, rest, workers=workers)
        _tell_skipped(before, known)
        classifier = finetune(model, training, out, **options, **of_classes, workers=workers)
        after = classifier_accuracy(classifier, rest, workers=workers)
    else:
        before = retrieval(model, rest, workers=workers)
        _tell_skipped(before, known)
        options["alpha"] = decide_alpha(alpha)
        tuned = finetune_captions(model, training, out, **options, workers=workers)
        after = retrieval(tuned, rest, workers=workers)
    return {name: (before.figures[name], after.figures[name]) for name in before.figures}


def _name_classes(pairs: Pairs) -> Pairs:
    """Return the pairs with names in place of the WordNet ids that folders are named by."""
    if pairs.class_names is None:
        return pairs
    return replace(pairs, class_names=list(name_ids(pairs.class_names)))


def _hold_out(pairs: Pairs, share: float) -> tuple[Pairs, Pairs]:
    """Return what to train on and what to measure on."""
    is_share = isinstance(share, int | float) and 0 <= share <= 1
    count = round(len(pairs) * share) if is_share else 0
    if not 0 < count < len(pairs):
        remedy = "pass held_out=0.5, or add images" if len(pairs) > 1 else "add images"
        raise DataError(
            "held_out must be a share that leaves some images to train on and some to measure on, "
            f"but is {share} of {number_of(len(pairs), 'image')}: {remedy}"
        )
    return pairs.split(count)


def _refuse_class_options(**options: object) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ConfigError(f"{given[0]} is for class folders: with captions both towers are trained")
