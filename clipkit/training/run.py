"""What `clipkit train` and `clipkit finetune` do: from a small validated file, or from a folder, to a trained model."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch

from clipkit.checkpoints.load import published_config
from clipkit.classify.evaluate import retrieval, zero_shot
from clipkit.classify.metrics import accuracy
from clipkit.clip import CLIP
from clipkit.config import CLIPConfig, build, check_positive
from clipkit.data.labelled import read_folder, read_pairs
from clipkit.errors import ConfigError, DataError
from clipkit.prompts import TEMPLATES, Templates, check_templates
from clipkit.training.batches import Augment, Batches, PairBatches
from clipkit.training.finetune import finetune, finetune_captions
from clipkit.training.loop import Trainer
from clipkit.training.optimizer import TrainConfig
from clipkit.training.shards import ShardBatches


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The file that `clipkit train` reads, as JSON; paths in it are relative to it.

    Args:
        model: a published name, whose architecture to use, or a CLIPConfig as a mapping.
        data: a folder of class folders, a table of captions (.csv, .tsv, .jsonl), or tar shards.
        out: folder for the run.
        batch_size: pairs of a step, over all processes.
        train: fields of TrainConfig.
        init: a name or path to start from in place of random weights; `model` is then not needed.
        templates: captions of class folders, as `zero_shot_weights` takes them: a list, or the name of a prompt set.
        augment: fields of Augment.
        workers: processes that read ahead.
        evaluate: a folder of class folders whose zero-shot accuracy is logged every `evaluate_every` steps.
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
        for name, kinds in {
            "data": str,
            "out": str,
            "init": str | None,
            "evaluate": str | None,
        }.items():
            if not isinstance(getattr(self, name), kinds):
                raise ConfigError(f"RunConfig.{name} must be a text, not {getattr(self, name)!r}")
        if not isinstance(self.model, str | CLIPConfig | None):
            raise ConfigError(
                f"RunConfig.model must be a name or the fields of a CLIPConfig, not {self.model!r}"
            )
        object.__setattr__(self, "templates", check_templates(self.templates))
        if (self.model is None) == (self.init is None):
            raise ConfigError(
                "RunConfig needs either model, to start from random weights, or init, to start from others"
            )

    @classmethod
    def read(cls, path: Path) -> "RunConfig":
        """Read and check the file. Raises `ConfigError` that names what is wrong."""
        try:
            values = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read {path} as JSON: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{path} must hold a JSON object, not {values!r}")
        for name, kind in (("train", TrainConfig), ("augment", Augment)):
            if not isinstance(values.get(name, {}), dict):
                raise ConfigError(f"{path}: {name} must be an object, not {values[name]!r}")
            if name in values:
                values[name] = build(kind, values[name])
        if isinstance(values.get("model"), dict):
            values["model"] = CLIPConfig.from_dict(values["model"])
        config = build(cls, values)
        beside = {
            name: str(path.parent / Path(value).expanduser())
            for name in ("data", "out", "evaluate", "init")
            if (value := getattr(config, name)) and "://" not in value
        }
        if config.init == "tiny" or not Path(beside.get("init", "")).exists():
            beside.pop("init", None)  # for it is a name
        return replace(config, **beside)


def train(config: RunConfig, device: str | None = None) -> CLIP:
    """Train as the file says, or go on where an earlier run of it stopped."""
    if config.init is not None:
        model = CLIP.from_pretrained(config.init, device="cpu", dtype=torch.float32)
    else:
        torch.manual_seed(config.train.seed)
        model = CLIP(
            published_config(config.model)
            if isinstance(config.model, str)
            else cast(CLIPConfig, config.model)
        )
    options = (
        config.batch_size,
        model.preprocess,
        model.tokenizer,
        config.augment,
        config.workers,
        config.train.seed,
    )
    if config.data.endswith((".tar", ".tgz", ".tar.gz")):
        batches: Batches = ShardBatches(config.data, *options)
    else:
        batches = PairBatches(read_pairs(Path(config.data), config.templates), *options)
    evaluate = None
    if config.evaluate is not None:
        held_out = read_folder(Path(config.evaluate))
        names = held_out.class_names or []
        templates, workers = config.templates, config.workers
        evaluate = lambda model: {"accuracy": zero_shot(model, held_out, names, templates, workers)}  # noqa: E731
    return Trainer(model, batches, config.train, config.out, evaluate=evaluate, device=device).fit()


def finetune_from(
    data: Path, out: Path, model: CLIP, *, held_out: float = 0.1, **options: Any
) -> dict[str, Any]:
    """Fine-tune on what `read_pairs` finds in `data`, and measure on a share of it that is held out.

    Args:
        data, out, model: see `read_pairs`, `finetune`.
        held_out: share of the pictures to measure on, chosen at random.
        options: of `finetune` or `finetune_captions`.

    Returns:
        For each figure its value before and after: accuracy with classes, recall at 1 and 5 with captions.

    Raises:
        DataError: if that share leaves nothing to train on, or nothing to measure on.
    """
    pairs = read_pairs(data)
    names = pairs.class_names
    count = round(len(pairs) * held_out) if 0 <= held_out <= 1 else 0
    if not 0 < count < len(pairs):
        raise DataError(
            f"held_out must be a share that leaves some pictures to train on and some to measure on, but is {held_out} "
            f"of {len(pairs)}"
        )
    training, rest = pairs.split(count)
    workers = options.get("workers", 0)
    if names:
        # Measured first, so that a broken picture shows before the training.
        before = {"accuracy": zero_shot(model, rest, names, workers=workers)}
        tuned = finetune(model, training, names, out, **options)
        predicted = tuned.probabilities(rest.files, workers=workers).argmax(dim=1)
        after = {"accuracy": accuracy(predicted, torch.tensor(rest.labels))}
    else:
        if options.pop("blocks", None) is not None:
            raise ConfigError("blocks is for class folders: with captions both towers are trained")
        before = retrieval(model, rest, workers)
        after = retrieval(finetune_captions(model, training, out, **options), rest, workers)
    return {name: (before[name], after[name]) for name in before}
