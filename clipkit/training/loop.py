"""The training loop: from one process on a laptop to `torchrun` on many machines.

Everything that is random in a step is seeded by the step, and batches are functions of the step,
except those from tar shards. A checkpoint therefore needs no more than weights, optimizer and step,
and a run that was killed goes on from it: on one process to the bit.
"""

import copy
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, SupportsFloat, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from clipkit import distributed
from clipkit.clip import CLIP
from clipkit.encode.fingerprints import fingerprint
from clipkit.models.placement import decide_device
from clipkit.training.batches import Batch, Batches
from clipkit.training.config import TrainConfig
from clipkit.training.log import Reporter, Row, as_row
from clipkit.training.optimizer import adamw, clip_gradients, train_mode
from clipkit.training.out import MODEL, check_run_folder, hold_run_folder
from clipkit.training.recompute import keep_blocks, recompute_blocks
from clipkit.training.setup import (
    check_arguments,
    check_pairs,
    check_task,
    prepare_task,
    start_average,
)
from clipkit.training.sharding import average_gradient, gather_weights, shard
from clipkit.training.signals import StopRequest, stop_requests, stopped_by
from clipkit.training.state import CHECKPOINT, TrainingState
from clipkit.training.step import StepResult, join_results, refuse_what_is_not_finite
from clipkit.training.tasks import ContrastiveTask, Task

MakeOptimizers = Callable[[nn.Module], list[Optimizer]]
Evaluate = Callable[[CLIP], Mapping[str, SupportsFloat]]

_logger = logging.getLogger(__name__)


class Trainer:
    """Train a CLIP, or another task, in place.

    Args:
        task: a CLIP, which is trained by `clip_loss`, or a task.
        batches: a function from a step to an iterator over the batches from there on, such as
            `PairBatches`. Each process gets its share.
        config: how to train.
        out: folder for `checkpoint.pt`, `log.jsonl`, the events of TensorBoard where it is
            installed, and in the end the `model`. A run that has a checkpoint there goes on from
            it. All processes must see the same folder, and no other run may write there.
        optimizers: makes other optimizers than AdamW, from the task. The schedule scales the rates
            that they start with.
        evaluate: maps the model, in eval mode, to numbers by name, which are logged.
        device: as in `clipkit.load`; under `torchrun` "cuda" is each process's own card.
        identity: what the run is of, beyond the model's and its own config and the batches. A
            checkpoint in `out` of another identity is refused. If it is empty, the weights that the
            run starts from stand for it.
        former_identities: what an older version called the same run. Its checkpoints are accepted.

    Attributes:
        task: what is trained.
        model: its CLIP.
        optimizers: as they were made.

    Raises:
        ConfigError: if an argument is of a wrong type, the weights are not float32, nothing is left
            to train, or the config does not fit the model.
        DataError: if a batch of pairs has one pair alone, which the contrastive loss cannot use.
        OutputError: if `out` cannot be written.
        TrainingError: if the checkpoint in `out` is damaged or of another run.

    Example:
        model = clipkit.CLIP.from_pretrained("tiny", device="cpu")
        pairs = clipkit.read_table("photos/captions.csv")
        batches = clipkit.PairBatches(pairs, 32, model.preprocess, model.tokenizer)
        config = clipkit.TrainConfig(steps=100, lr=1e-4)
        model = clipkit.Trainer(model, batches, config, "run").fit()
    """

    def __init__(
        self,
        task: CLIP | Task,
        batches: Batches,
        config: TrainConfig,
        out: str | os.PathLike[str],
        *,
        optimizers: MakeOptimizers | None = None,
        evaluate: Evaluate | None = None,
        device: str | torch.device | None = None,
        identity: str = "",
        former_identities: Sequence[str] = (),
    ) -> None:
        check_arguments(task, batches, config, evaluate)
        self.config = config
        self.batches = batches
        self.evaluate = evaluate
        self.out = check_run_folder(out)
        self.device = decide_device(device)
        distributed.start(self.device)
        self.sharded = config.shard and distributed.group() is not None
        self.task: Task = ContrastiveTask(task) if isinstance(task, CLIP) else task
        self.task.to(self.device)
        self.model = self.task.model
        check_task(self.task, config, self.sharded)
        check_pairs(self.task, getattr(batches, "batch_size", None))
        start = "" if identity else self._fingerprint()
        prepare_task(self.task, config)
        self.average = start_average(self.task, config.ema)
        if config.recompute:
            recompute_blocks(self.task)
        self._wrapped = self._wrap()
        self.optimizers = self._make_optimizers(optimizers)
        self._full_rates = [[group["lr"] for group in o.param_groups] for o in self.optimizers]
        self.state = self._start_state([identity, *former_identities], start)
        self.state.resume(self._checkpoint)

    def fit(self) -> CLIP:
        """Train to the last step, save, and return the model.

        It is in eval mode, with every parameter unlocked, and `out/model` holds it too.

        Raises:
            OutputError: if another process is writing to `out`, or the disk is full.
            TrainingError: if the loss or a gradient is not finite. The checkpoint from before is
                left as it is.
            SystemExit: after SIGTERM, once the step is done and saved.
            KeyboardInterrupt: after Ctrl-C, once the step is done and saved; after a second Ctrl-C
                at once.
        """
        with hold_run_folder(self.out):
            # Another run may have gone on in the folder since this one looked.
            self.state.resume_if_changed(self._checkpoint)
            try:
                self._loop()
            finally:
                if self.config.recompute:
                    keep_blocks(self.task)
            return self._finish()

    def _start_state(self, identities: list[str], start: str) -> TrainingState:
        """Return the state of a run that has made no step."""
        return TrainingState(
            self.task,
            self.optimizers,
            self.average,
            self.config,
            self.sharded,
            [self._about(name) for name in identities],
            start,
        )

    def _about(self, identity: str) -> list[Any]:
        """Return what a checkpoint's run is known again by."""
        return [self.model.config.to_dict(), identity, getattr(self.batches, "identity", "")]

    def _fingerprint(self) -> str:
        """Return what the weights to start from are known by: those of the first process."""
        own = fingerprint(self.task) if distributed.is_first() else ""
        return distributed.gather_objects(own)[0]

    @property
    def step(self) -> int:
        """Return the number of steps that are made."""
        return self.state.counters.step

    @property
    def _checkpoint(self) -> Path:
        return self.out / CHECKPOINT

    def _wrap(self) -> nn.Module:
        """Return the task as it is called: copied to or split over the processes, and compiled."""
        wrapped: nn.Module = self.task
        if self.sharded:
            # A split module cannot be copied. This copy has no weights, and gets them in the end.
            self._blank_model = copy.deepcopy(self.model).to("meta")
            shard(self.task, self.model.logit_scale, self.config.precision)
        elif distributed.group() is not None:
            cards = [self.device] if self.device.type == "cuda" else None
            wrapped = nn.parallel.DistributedDataParallel(self.task, device_ids=cards)
        return cast(nn.Module, torch.compile(wrapped)) if self.config.compile else wrapped

    def _make_optimizers(self, make: MakeOptimizers | None) -> list[Optimizer]:
        if make is not None:
            return make(self.task)
        config = self.config
        return [adamw(self.task, config.lr, config.weight_decay, config.layer_decay, config.betas)]

    # The loop

    def _loop(self) -> None:
        """Make the steps that are left. Each is counted, reported, and saved where that is due."""
        is_done = self.step >= self.config.steps
        if is_done and distributed.is_first():
            _logger.info("Nothing is left to do in %s: all %d steps are made.", self.out, self.step)
        batches = iter(()) if is_done else self.batches(self.step)
        train_mode(self.task)
        reporter = Reporter(self.out, self.step, self.config.steps)
        with stop_requests() as request, reporter:
            while self.step < self.config.steps:
                batch = next(batches)
                result = self._train_step(batch, request)
                self._count(result)
                reporter.count(len(batch.inputs[0]), batch.skipped)
                self._report(reporter)
                if self._is_due(self.config.save_every) or result.stop:
                    self._save()
                reporter.advance()
                if result.stop and not self._is_last():
                    raise stopped_by(
                        result.stop,
                        f"step {self.step} is saved in {self._checkpoint}: the same call goes on "
                        "from there",
                    )

    def _is_last(self) -> bool:
        return self.step == self.config.steps

    def _is_due(self, every: int) -> bool:
        """Return whether something is due that is done every so many steps, and at the end."""
        return self._is_last() or (every > 0 and self.step % every == 0)

    def _count(self, result: StepResult) -> None:
        counters = self.state.counters
        counters.step += 1
        counters.losses += result.loss
        counters.counted += 1
        counters.skipped += result.skipped

    def _report(self, reporter: Reporter) -> None:
        """Write a row of what is due after this step: the log's own figures, the evaluation's.

        If the evaluation fails, the other figures and the step are saved first.
        """
        is_measured = self.evaluate is not None and self._is_due(self.config.evaluate_every)
        if not is_measured and not self._is_due(self.config.log_every):
            return
        row = self._figures(reporter.images_per_second())
        reporter.show(row)
        try:
            if is_measured:
                row |= as_row(self._measure())
        except Exception:
            reporter.write(self.step, row)
            self._save()
            raise
        reporter.write(self.step, row)

    def _figures(self, images_per_second: float) -> Row:
        """Return the log's own figures, and start a new mean of the loss."""
        counters = self.state.counters
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        row: Row = {
            "loss": counters.losses / counters.counted,
            "scale": self.model.logit_scale.exp().item(),
            "lr": max(group["lr"] for group in groups),
            "images_per_second": images_per_second,
            "skipped": counters.skipped,
        }
        counters.losses = 0.0
        counters.counted = 0
        return row

    def _save(self) -> None:
        self.state.save(self._checkpoint)

    # One step

    def _train_step(self, batch: Batch, request: StopRequest) -> StepResult:
        """Make one step of the optimizers."""
        self._seed()
        self._set_rates()
        loss = self._forward(batch)
        loss.backward()
        if self.sharded:
            average_gradient(self.model.logit_scale)
        norm = clip_gradients(self.task, self.config.clip_grad)
        result = join_results(loss, norm, len(batch.skipped), request.signal)
        refuse_what_is_not_finite(result, self.step, batch.names)
        self._update_weights()
        return result

    def _seed(self) -> None:
        """Seed all that is random in a step by the run's seed, the step and the process."""
        # torch's generator on the CPU looks at no more than 32 bits of a seed.
        seeds = np.random.SeedSequence([self.config.seed, self.step, distributed.rank()])
        torch.manual_seed(int(seeds.generate_state(1)[0]))

    def _set_rates(self) -> None:
        """Scale the rates that the optimizers started with to those of this step."""
        factor = self.config.rate_factor(self.step)
        for optimizer, full_rates in zip(self.optimizers, self._full_rates, strict=True):
            for group, full_rate in zip(optimizer.param_groups, full_rates, strict=True):
                group["lr"] = full_rate * factor

    def _forward(self, batch: Batch) -> Tensor:
        """Return the loss of this process's share of a batch, a scalar."""
        inputs = [x.to(self.device, non_blocking=True) for x in batch.inputs]
        # The policy of a sharded task casts by itself.
        half = self.config.precision == "bfloat16" and not self.sharded
        with torch.autocast(self.device.type, torch.bfloat16) if half else nullcontext():
            return self._wrapped(*inputs)

    def _update_weights(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()
        self.task.zero_grad()
        self.task.after_step()
        if self.average is not None:
            self.average.update_parameters(self.task)

    # Evaluation

    def _measure(self) -> object:
        """Return what `evaluate` makes of the model in eval mode, or of its average."""
        model = self.model
        if self.average is not None:
            model = cast(CLIP, self.average.module.model)
        root = cast(Any, self.task)
        model.eval()
        if self.sharded:
            # Evaluation does not call the root, which would gather the weights outside the blocks.
            root.unshard()
        try:
            with torch.no_grad():
                return None if self.evaluate is None else self.evaluate(model)
        finally:
            if self.sharded:
                root.reshard()
            train_mode(self.task)

    # The end

    def _finish(self) -> CLIP:
        """Write `out/model`, and return the model."""
        self.task.requires_grad_(True).eval()
        if self.average is not None:
            self.task.load_state_dict(self.average.module.state_dict())
        model = self._whole_model() if self.sharded else self.model
        if distributed.is_first():
            model.save_pretrained(self.out / MODEL)
        if distributed.group() is not None:
            dist.barrier()  # no process may look for the folder before it is there
        return model

    def _whole_model(self) -> CLIP:
        """Return the split model in one piece, in every process."""
        weights = gather_weights(self.task, everywhere=True)
        own = {
            name.removeprefix("model."): value
            for name, value in weights.items()
            if name.startswith("model.")
        }
        self._blank_model.load_state_dict(own, assign=True)
        return self._blank_model.requires_grad_(True).eval()
