"""The training loop: from one process on a laptop to `torchrun` on many machines.

Everything that is random in a step is seeded by the step, and batches are functions of the step (but for those from tar
shards). So a checkpoint needs no more than weights, optimiser and step: a run that was killed goes on, on one process
to the bit.
"""

import math
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from clipkit import distributed
from clipkit.clip import CLIP, decide_device
from clipkit.errors import ConfigError, TrainingError
from clipkit.files import replacing
from clipkit.models.layers import ResidualAttentionBlock
from clipkit.models.resnet import ModifiedResNet
from clipkit.training.batches import Batch, Batches
from clipkit.training.log import Log
from clipkit.training.optimizer import TrainConfig, adamw, clip_gradients, cosine, lock, train_mode
from clipkit.training.recompute import checkpoint_blocks, keep_blocks
from clipkit.training.tasks import ContrastiveTask, Task


class Trainer:
    """Trains a CLIP, or another task, in place.

    Args:
        task: a CLIP, trained by `clip_loss`, or a task.
        batches: see `clipkit.training.batches`.
        config: how to train.
        out: folder for `checkpoint.pt`, `log.jsonl`, the events of TensorBoard where it is installed, and in the end
            the `model`. A run that has a checkpoint there goes on from it. All processes must see the same folder.
        optimizers: makes optimisers in place of AdamW, from the task; the schedule scales the rates they start with.
        evaluate: maps the model, in eval mode, to figures that are logged.
        device: as in `clipkit.load`; under `torchrun` each process takes its own.
        identity: what the run is of, beyond the model's and its own config and the batches: a checkpoint in `out` of
            another one is refused.

    Raises:
        ConfigError: if the weights are not float32, nothing is left to train, or the config does not fit the model.
        TrainingError: if the checkpoint in `out` is damaged or of another run.
    """

    def __init__(
        self,
        task: CLIP | Task,
        batches: Batches,
        config: TrainConfig,
        out: str | os.PathLike[str],
        *,
        optimizers: Callable[[nn.Module], list[Optimizer]] | None = None,
        evaluate: Callable[[CLIP], dict[str, float]] | None = None,
        device: str | torch.device | None = None,
        identity: str = "",
    ) -> None:
        self.config, self.batches, self.evaluate, self.out = config, batches, evaluate, Path(out)
        self.device = decide_device(device)
        distributed.start(self.device)
        self.sharded = config.shard and distributed.group() is not None
        self.task: Task = (ContrastiveTask(task) if isinstance(task, CLIP) else task).to(
            self.device
        )
        self.model = self.task.model
        self.identity = [self.model.config.to_dict(), identity, getattr(batches, "identity", "")]
        self._check()
        for tower, blocks in (
            (self.model.visual, config.image_blocks),
            (self.model.text, config.text_blocks),
        ):
            if blocks is not None:
                lock(tower, blocks)
        self.task.micro_batch = config.micro_batch
        if isinstance(self.model.visual, ModifiedResNet):  # whose convolutions are faster so
            self.model.visual.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.average = None
        if config.ema is not None:
            from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

            self.average = AveragedModel(
                self.task, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True
            )
        if config.gradient_checkpointing:
            checkpoint_blocks(self.task)
        self.wrapped = self._wrap()
        make = optimizers or (
            lambda task: [
                adamw(task, config.lr, config.weight_decay, config.layer_decay, config.betas)
            ]
        )
        self.optimizers = make(self.task)
        self.rates = [
            [group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers
        ]
        self.step, self.losses, self.counted, self.skipped = 0, 0.0, 0, 0
        self._resume()

    def _check(self) -> None:
        config, resnet = self.config, isinstance(self.model.visual, ModifiedResNet)
        if any(p.dtype != torch.float32 for p in self.task.parameters()):
            raise ConfigError(
                f"training keeps float32 weights, the model has {self.model.dtype}: call model.float()"
            )
        if self.sharded and (resnet or not isinstance(self.task, ContrastiveTask)):
            raise ConfigError(
                "shard splits a CLIP of two transformers; train a ResNet or a classifier without it"
            )
        if config.compile and resnet and (config.gradient_checkpointing or config.micro_batch):
            raise ConfigError(
                "compile does not go with gradient_checkpointing or micro_batch for a ResNet"
            )

    def _wrap(self) -> nn.Module:
        """The task as it is called: compiled, and copied to or split over the processes."""
        wrapped: Any = self.task
        if self.sharded:
            from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

            half = torch.bfloat16 if self.config.precision == "bfloat16" else None
            policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32)
            for block in [m for m in self.task.modules() if isinstance(m, ResidualAttentionBlock)]:
                fully_shard(block, mp_policy=policy)
            scale = {self.model.logit_scale}  # a scalar cannot be split
            fully_shard(self.task, mp_policy=policy, ignored_params=scale)
        elif distributed.group() is not None:
            wrapped = nn.parallel.DistributedDataParallel(
                self.task, device_ids=[self.device] if self.device.type == "cuda" else None
            )
        return cast(nn.Module, torch.compile(wrapped)) if self.config.compile else wrapped

    def fit(self) -> CLIP:
        """Train to the last step, save, and give the model, in eval mode and with every parameter unlocked.

        Raises:
            TrainingError: if the loss or a gradient is not finite. The checkpoint from before is left as it is.
            SystemExit: after SIGTERM, once the step is done and saved.
        """
        try:
            self._loop()
        finally:
            if self.config.gradient_checkpointing:
                keep_blocks(self.task)
        return self._finish()

    def _loop(self) -> None:
        from tqdm import tqdm

        main = distributed.rank() == 0
        self.out.mkdir(parents=True, exist_ok=True)
        log, batches = Log(self.out, self.step) if main else None, self.batches(self.step)
        with (
            _sigterm() as stopped,
            tqdm(
                total=self.config.steps,
                initial=self.step,
                disable=None if main else True,
                unit="step",
            ) as progress,
        ):
            started, since = time.perf_counter(), self.step
            train_mode(self.task)
            told: set[str] = set()
            while self.step < self.config.steps:
                batch = next(batches)
                loss, skipped, stop = self._train_step(batch, stopped.is_set())
                self.step += 1
                self.losses += loss
                self.counted += 1
                self.skipped += skipped
                for reason in set(batch.skipped) - told:
                    progress.write(f"skipped: {reason}", file=sys.stderr)
                told.update(batch.skipped)
                last, row = self.step == self.config.steps, {}
                if _due(self.step, self.config.log_every) or last:
                    pace = (self.step - since) * len(batch.inputs[0]) * distributed.world_size()
                    row = self._row(pace / (time.perf_counter() - started))
                    progress.set_postfix(
                        {k: f"{row[k]:.4g}" for k in ("loss", "scale", "images_per_second")}
                    )
                if self.evaluate and (_due(self.step, self.config.evaluate_every) or last):
                    try:
                        row |= self._evaluate()
                    except Exception:
                        self._save()  # or the steps since the last checkpoint would be lost with it
                        raise
                if row and log is not None:
                    log.write({"step": self.step, **row})
                if row:
                    started, since = time.perf_counter(), self.step
                if _due(self.step, self.config.save_every) or last or stop:
                    self._save()
                progress.update()
                if stop and not last:
                    raise SystemExit(128 + signal.SIGTERM)

    def _train_step(self, batch: Batch, stopped: bool) -> tuple[float, int, bool]:
        """One step of the optimisers.

        Returns:
            The mean loss of all processes, the pictures that they skipped, and whether one of them was told to stop.
        """
        config = self.config
        torch.manual_seed(
            (config.seed << 40) % 2**63 + self.step * distributed.world_size() + distributed.rank()
        )
        factor = cosine(self.step, config.steps, config.warm_up or 0)
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        inputs = [x.to(self.device, non_blocking=True) for x in batch.inputs]
        half = config.precision == "bfloat16" and not self.sharded  # whose policy casts by itself
        with torch.autocast(self.device.type, torch.bfloat16) if half else nullcontext():
            loss = self.wrapped(*inputs)
        loss.backward()
        if self.sharded and (grad := self.model.logit_scale.grad) is not None:
            dist.all_reduce(grad.div_(distributed.world_size()))  # the one that FSDP does not know
        norm = clip_gradients(self.task, config.clip_grad)
        others = torch.tensor([len(batch.skipped), float(stopped)], device=self.device)
        report = torch.cat([torch.stack([loss.detach().float(), norm]), others])
        if distributed.group() is not None:
            dist.all_reduce(report)
        mean_loss, mean_norm, skipped, stops = report.tolist()
        mean_loss, mean_norm = (
            mean_loss / distributed.world_size(),
            mean_norm / distributed.world_size(),
        )
        if not math.isfinite(mean_loss + mean_norm):
            pictures = ", ".join(batch.names[:8]) + (", ..." if len(batch.names) > 8 else "")
            raise TrainingError(
                f"step {self.step}: the loss is {mean_loss} and the gradient's norm {mean_norm}. The weights and the "
                f"checkpoint are from before it. Process {distributed.rank()} had {pictures or 'unnamed pictures'}. "
                "Try a lower lr, a longer warm_up or precision='float32'"
            )
        for optimizer in self.optimizers:
            optimizer.step()
        self.task.zero_grad()
        self.task.after_step()
        if self.average is not None:
            self.average.update_parameters(self.task)
        return mean_loss, int(skipped), stops > 0

    def _row(self, pace: float) -> dict[str, float]:
        row = {
            "loss": self.losses / self.counted,
            "scale": self.model.logit_scale.exp().item(),
            "lr": max(
                group["lr"] for optimizer in self.optimizers for group in optimizer.param_groups
            ),
            "images_per_second": pace,
            "skipped": self.skipped,
        }
        self.losses, self.counted = 0.0, 0
        return row

    def _averaged(self) -> CLIP:
        return self.model if self.average is None else cast(CLIP, self.average.module.model)

    def _evaluate(self) -> dict[str, float]:
        assert self.evaluate is not None
        model, root = self._averaged().eval(), cast(Any, self.task)
        if self.sharded:
            root.unshard()  # what is not in a block; evaluation does not call the root, which would do it
        with torch.no_grad():
            figures = self.evaluate(model)
        if self.sharded:
            root.reshard()
        train_mode(self.task)
        return figures

    def _weights(self) -> dict[str, Any]:
        """Of the whole task. To be asked for by all processes; if they share them, only the first gets them."""
        if not self.sharded:
            return self.task.state_dict()
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        return get_model_state_dict(
            self.task, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
        )

    def _moments(self) -> Any:
        """What the optimisers keep, as `_weights` gives the weights."""
        if not self.sharded:
            return [optimizer.state_dict() for optimizer in self.optimizers]
        from torch.distributed.checkpoint.state_dict import (
            StateDictOptions,
            get_optimizer_state_dict,
        )

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return get_optimizer_state_dict(self.task, self.optimizers, options=options)

    def _state(self) -> dict[str, Any]:
        average = None if self.average is None else self.average.state_dict()
        return {
            "config": asdict(self.config),
            "identity": self.identity,
            "task": self._weights(),
            "optimizers": self._moments(),
            "average": average,
        } | {name: getattr(self, name) for name in _COUNTERS}

    def _save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        state = self._state()  # by all processes
        if distributed.rank() == 0:
            for left in self.out.glob(
                ".checkpoint.pt.*.tmp"
            ):  # by a process that was killed while it wrote
                left.unlink()
            with replacing(self.out / "checkpoint.pt") as partial, partial.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())

    def _resume(self) -> None:
        checkpoint = self.out / "checkpoint.pt"
        if checkpoint.exists():
            try:
                state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
                self._refuse_another(checkpoint, state)
                self._load(state)
            except (
                RuntimeError,
                ValueError,
                KeyError,
                OSError,
                EOFError,
                pickle.UnpicklingError,
            ) as error:
                if isinstance(error, TrainingError):
                    raise
                raise TrainingError(
                    f"{checkpoint} cannot be resumed ({error}): remove it, or give another out"
                ) from error
        if len(set(steps := distributed.gather_objects(self.step))) > 1:
            raise TrainingError(
                f"the processes found steps {steps}: {self.out} must be one folder that all see"
            )

    def _refuse_another(self, checkpoint: Path, state: dict[str, Any]) -> None:
        now, then = asdict(self.config), state["config"]
        differing = [key for key in now if key not in _FREE and now[key] != then.get(key)]
        changed = [f"{key} {then.get(key)!r} there, {now[key]!r} here" for key in differing]
        if state["identity"] != self.identity:
            changed.append("another model, start or data")
        if changed:
            raise TrainingError(
                f"{checkpoint} is of another run ({'; '.join(changed)}): give another out, or what that run had"
            )

    def _load(self, state: dict[str, Any]) -> None:
        if self.sharded:
            from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

            set_state_dict(
                self.task,
                self.optimizers,
                model_state_dict=state["task"],
                optim_state_dict=state["optimizers"],
                options=StateDictOptions(full_state_dict=True),
            )
        else:
            self.task.load_state_dict(state["task"])
            for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(values)
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        for name in _COUNTERS:
            setattr(self, name, state[name])

    def _finish(self) -> CLIP:
        """Write `out/model`, and give the model."""
        self.task.requires_grad_(True).eval()
        if self.average is not None:
            self.task.load_state_dict(self.average.module.state_dict())
        model, folder = self.model, self.out / "model"
        weights = self._weights() if self.sharded else {}
        if weights:
            model = CLIP(self.model.config, self.model._tokenizer)
            model.load_state_dict(
                {k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")}
            )
        if distributed.rank() == 0:
            model.save_pretrained(folder)
        if distributed.group() is not None:
            dist.barrier()
        return (
            CLIP.from_pretrained(folder, device=self.device, dtype=torch.float32)
            if self.sharded
            else model
        )


# What may change between the parts of a run: how far it goes, what it reports, how it saves memory or time.
_FREE = {"steps", "warm_up", "log_every", "save_every", "evaluate_every"}
_FREE |= {"compile", "micro_batch", "gradient_checkpointing"}
_COUNTERS = ("step", "losses", "counted", "skipped")  # of a Trainer, kept in its checkpoint


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


@contextmanager
def _sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, instead of killing the process. Only the main thread may listen to signals."""
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield told
        return
    before = signal.signal(signal.SIGTERM, lambda *_: told.set())
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)
