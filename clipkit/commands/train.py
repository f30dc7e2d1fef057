"""`clipkit train`: train as a file says."""

import argparse
from pathlib import Path

from clipkit import RunConfig, distributed
from clipkit import train as train_model
from clipkit.commands.command import DONE, Command, add_device, path_of
from clipkit.commands.display import tell, typed
from clipkit.commands.folders import tell_size, ways_to_load
from clipkit.errors import ConfigError
from clipkit.files import check_output
from clipkit.plurals import number_of
from clipkit.training.state import CHECKPOINT

EXAMPLE = """\
{
  "model": "ViT-B/32",
  "data": "captions.csv",
  "out": "runs/first",
  "batch_size": 256,
  "workers": 8,
  "evaluate": "validation_folders/",
  "train": {"steps": 20000, "lr": 5e-4, "precision": "bfloat16", "evaluate_every": 2000}
}"""

DETAILS = f"""\
CONFIG.json holds one object, such as
{EXAMPLE}

its fields; paths are relative to the file:
  data        class folders, a table of captions (.csv, .tsv, .jsonl: columns path and caption),
              or tar shards ("shards/{{000..127}}.tar", with clipkit-torch[train])
  out         folder for the run. A run that was stopped goes on there when it is started again.
              In the end out/model is the model.
  batch_size  pairs of a step, over all processes
  model       what to start from, with random weights: a published name, or fields of a CLIPConfig
  init        what to start from with its weights, in place of model: a name from `clipkit models`,
              a hub id or a path, such as "tiny" or "runs/first/model"
  train       how to train, see below
  evaluate    class folders; the zero-shot accuracy on them is logged every evaluate_every steps
  templates   captions of class folders, a list of texts with {{}}, or the name of a prompt set
  augment     {{"area": the least share of an image that a crop keeps (0.9), "mirror": false}}
  workers     processes that read ahead (0)

fields of train; all but steps may be left out:
  steps           steps of the optimizer
  lr              highest learning rate (5e-4)     warm_up        steps to reach it
  weight_decay    (0.2)                            betas          of AdamW ([0.9, 0.98])
  layer_decay     factor on lr a block (1.0)       clip_grad      highest norm of gradients (1.0)
  precision       "float32" or "bfloat16"          micro_batch    pairs to encode at once
  recompute       less memory, more time (false)   compile        use torch.compile (false)
  image_blocks    last blocks of the image tower   text_blocks    and of the text tower to train
  ema             decay of averaged weights        shard          split over processes (false)
  log_every       steps between figures (50)       save_every     and checkpoints (1000)
  evaluate_every  0 is at the end alone            seed           of all that is random (0)

on several cards:
  torchrun --nproc-per-node 8 -m clipkit train run.json"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", type=path_of, metavar="CONFIG.json", help="what to train on what, and how"
    )
    add_device(parser)


def train(*, file: Path, device: str | None) -> int:
    """Train as the file says, or go on where an earlier run of it stopped."""
    try:
        config = RunConfig.read(file)
        out = Path(config.out)
        check_output(out, "folder")
        if distributed.is_first():
            steps = number_of(config.train.steps, "step")
            begins = "Going on with the run of" if (out / CHECKPOINT).exists() else "Training for"
            tell(f"{begins} {steps} in {out}. Figures go to {out / 'log.jsonl'}.")
        _train(config, device)
        is_first = distributed.is_first()
    finally:
        distributed.stop()
    if is_first:
        tell_size(out)
        model = out / "model"
        print(f"Saved to {typed(model)}; load it by {ways_to_load(model)}")
    return DONE


def _train(config: RunConfig, device: str | None) -> None:
    """Train, and say what to do about weights that a run file cannot describe."""
    try:
        train_model(config, device)
    except ConfigError as error:
        if config.init is None or "pass config=" not in str(error):
            raise
        raise ConfigError(
            f"{error}. A run file has no place for these: save the weights once with what they "
            f"are, clipkit.CLIP.from_pretrained({config.init!r}, config=...)"
            '.save_pretrained("start"), and give "init": "start"'
        ) from error


TRAIN = Command(
    name="train",
    examples="clipkit train run.json --device cuda",
    add_arguments=_add_arguments,
    run=train,
    details=DETAILS,
)
