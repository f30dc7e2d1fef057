"""All that a checkpoint of training holds: to save it, and to go on from it.

Everything that is random in a step is seeded by the step, so weights, optimizer and step suffice.
"""

import copy
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from clipkit import distributed
from clipkit.errors import TrainingError
from clipkit.files import replacing
from clipkit.training.config import TrainConfig
from clipkit.training.saved import problem_of_moments, problem_of_tensors, read_state, unusable
from clipkit.training.sharding import gather_moments, gather_weights, scatter

CHECKPOINT = "checkpoint.pt"  # in the folder of a run
_AVERAGED = "module."  # what torch puts before the names of averaged weights

# Fields of TrainConfig that may change between the parts of a run: how far it goes, what it
# reports, how it saves memory or time.
_FREE = (
    *("steps", "warm_up", "log_every", "save_every", "evaluate_every"),
    *("compile", "micro_batch", "recompute"),
)


@dataclass
class Counters:
    """Count what a run has done. The fields are entries of a checkpoint, by these names.

    Attributes:
        step: steps that are made.
        losses: the sum of the losses since the last row of the log.
        counted: the number of losses in that sum.
        skipped: images that could not be read, of all processes, since the run began.
    """

    step: int = 0
    losses: float = 0.0
    counted: int = 0
    skipped: int = 0


@dataclass
class TrainingState:
    """Hold what changes during a run, and what it is a run of.

    Args:
        task: what is trained.
        optimizers: of its parameters.
        average: the moving average of its weights, if there is one.
        config: how it is trained.
        sharded: whether the processes share the weights, instead of a copy each.
        identities: the model's config, and what the run's start and its batches are known by. A
            checkpoint gets the first; those with any of the others are of the same run.
        start: what the weights that the run started from are known by, where the identities do not
            tell that; otherwise empty.
    """

    task: nn.Module
    optimizers: list[Optimizer]
    average: AveragedModel | None
    config: TrainConfig
    sharded: bool
    identities: list[list[Any]]
    start: str = ""
    counters: Counters = field(default_factory=Counters)
    _read_file: tuple[int, ...] = field(default=(), init=False)

    def save(self, checkpoint: Path) -> None:
        """Write a checkpoint, whole or not at all. Every process must call it; the first writes.

        Raises:
            OutputError: if it cannot be written.
        """
        state = self._collect()
        if not distributed.is_first():
            return
        with replacing(checkpoint) as partial, partial.open("wb") as file:
            torch.save(state, file)
            # The file must be on the disk before it takes the place of the last sound one.
            file.flush()
            os.fsync(file.fileno())

    def resume(self, checkpoint: Path) -> None:
        """Go on from a checkpoint, if there is one. Every process must call it.

        Raises:
            TrainingError: in all processes, if it is damaged or of another run, or not all of them
                see it.
        """
        self._read_file = _marks_of(checkpoint)
        state = distributed.in_all(lambda: self._read(checkpoint))
        steps = distributed.gather_objects(0 if state is None else state["step"])
        if len(set(steps)) > 1:
            raise TrainingError(
                f"the processes found steps {steps}: {checkpoint.parent} must be one folder that "
                "all see"
            )
        if state is not None:
            self._restore(state)

    def resume_if_changed(self, checkpoint: Path) -> None:
        """Go on from a checkpoint that was written after `resume` looked. Every process calls it.

        Raises:
            TrainingError: as `resume` does.
        """
        changed = distributed.gather_objects(_marks_of(checkpoint) != self._read_file)
        if any(changed):
            self.resume(checkpoint)

    def _read(self, checkpoint: Path) -> dict[str, Any] | None:
        """Return what a checkpoint of this run holds, or None if there is none yet."""
        if not checkpoint.exists():
            return None
        state = read_state(checkpoint, thorough=distributed.is_first())
        self._refuse_another_run(checkpoint, state)
        if problem := self._problem_of(state):
            raise unusable(checkpoint, problem)
        return state

    def _problem_of(self, state: dict[str, Any]) -> str:
        """Return how a checkpoint's tensors differ from those here, or an empty text."""
        problem = problem_of_tensors(state["task"], self.task.state_dict())
        if not self.sharded:
            problem = problem or problem_of_moments(state["optimizers"], self.optimizers)
        elif not isinstance(state["optimizers"], dict):
            problem = "its optimizers were not split over processes"
        if self.average is not None:
            average = problem_of_tensors(state["average"] or {}, self.average.state_dict())
            problem = problem or average
        return problem

    def weights(self) -> dict[str, Any]:
        """Return the weights of the whole task; if it is sharded, to the first process alone.

        Every process must call it.
        """
        return gather_weights(self.task) if self.sharded else self.task.state_dict()

    def _moments(self) -> Any:
        """Return what the optimizers keep, as `weights` returns the weights."""
        if self.sharded:
            return gather_moments(self.task, self.optimizers)
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def _collect(self) -> dict[str, Any]:
        return {
            "config": asdict(self.config),
            "identity": self.identities[0],
            "start": self.start,
            "task": self.weights(),
            "optimizers": self._moments(),
            "average": None if self.average is None else self.average.state_dict(),
            **asdict(self.counters),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        if self.sharded:
            scatter(self.task, self.optimizers, state["task"], state["optimizers"])
        else:
            self.task.load_state_dict(state["task"])
            for optimizer, moments in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(moments)
        _copy_moments(self.optimizers)
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.counters = Counters(**{name: state[name] for name in asdict(self.counters)})
        self.start = state.get("start", self.start)

    def _refuse_another_run(self, checkpoint: Path, state: dict[str, Any]) -> None:
        here = asdict(self.config)
        there = state["config"]
        differences = [
            f"{name} {there.get(name)!r} there, {here[name]!r} here"
            for name in here
            if name not in _FREE and here[name] != there.get(name)
        ]
        differences += self._other_origins(state)
        if differences:
            raise TrainingError(
                f"{checkpoint} is of another run ({'; '.join(differences)}): give another out, or "
                "what that run had"
            )

    def _other_origins(self, state: dict[str, Any]) -> list[str]:
        """Say whether a checkpoint is of another model, start or data.

        Those of version 0.1.0 do not tell the weights that their run started from.
        """
        model, identity, data = state["identity"]
        own_model, _, own_data = self.identities[0]
        same_start = state.get("start", self.start) == self.start
        # Nor do those tell of any shards.
        same_data = data == own_data or (data == "" and "start" not in state)
        if model != own_model:
            return ["another model"]
        differences: list[str] = []
        if identity not in [name for _, name, _ in self.identities]:
            differences.append("another start: other weights, classes or prompts")
        elif not same_start and not self._has_weights_of(state):
            differences.append(
                "another start: other weights; a model that was trained is another start, so load "
                "it again"
            )
        if not same_data:
            differences.append("other data")
        return differences

    def _has_weights_of(self, state: dict[str, Any]) -> bool:
        """Return whether a checkpoint's run has trained this very task, which it did in place.

        After a stop the task has the weights that were saved, after the end those of the average.
        """
        if self.sharded:
            return False  # the weights are spread over the processes, and the task cannot be reused
        average = cast("dict[str, Any]", state["average"] or {})
        ended = {name.removeprefix(_AVERAGED): value for name, value in average.items()}
        ended.pop("n_averaged", None)
        own = self.task.state_dict()
        return _are_equal(own, state["task"]) or _are_equal(own, ended)


def _are_equal(own: Mapping[str, Tensor], other: Mapping[str, Any]) -> bool:
    """Return whether two state dicts hold the same values."""
    if problem_of_tensors(other, own):
        return False
    return all(torch.equal(value.cpu(), other[name]) for name, value in own.items())


def _copy_moments(optimizers: list[Optimizer]) -> None:
    """Copy what optimizers keep, in place.

    It may lie in the file that it was read from, which is mapped into memory. Were that file cut
    off, the process would be killed.
    """
    for optimizer in optimizers:
        for parameter, kept in optimizer.state.items():
            optimizer.state[parameter] = copy.deepcopy(kept)


def _marks_of(file: Path) -> tuple[int, ...]:
    """Return what tells that a file was replaced; nothing if there is none."""
    try:
        found = file.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns
