"""Tell how a run goes: rows of numbers in a file and for TensorBoard, and a progress bar."""

import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from clipkit import distributed
from clipkit.errors import ConfigError, TrainingError
from clipkit.files import parse_json, read_text, replacing, typed_write_errors
from clipkit.plurals import number_of
from clipkit.visible import visible

Row = dict[str, float]

# In the folder of a run.
LOG = "log.jsonl"
BOARD = "tensorboard"

_MAX_BYTES = 1 << 28  # of a log; a million rows have about 150 MB
_ON_THE_BAR = ("loss", "scale", "images_per_second")
_MAX_LINES = 100  # of figures that a run tells, beside what is in the file

_logger = logging.getLogger(__name__)


class Log:
    """Write rows to `log.jsonl` and `tensorboard/` in a folder.

    Args:
        folder: of the run.
        step: the rows of later steps are dropped, because those steps will be made again; so is a
            last row that was cut off.

    Raises:
        TrainingError: if there is a log with lines that no run wrote.
        OutputError: if the log cannot be written.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.file = folder / LOG
        if self.file.exists():
            self._keep_up_to(step)
        with typed_write_errors(self.file, folder):
            self.board = _open_board(folder / BOARD, step)

    def _keep_up_to(self, step: int) -> None:
        text = read_text(self.file, error=TrainingError, max_bytes=_MAX_BYTES)
        *lines, _ = text.split("\n")  # of a last line without an end something is missing
        kept = [line for number, line in enumerate(lines, 1) if self._step_of(line, number) <= step]
        with replacing(self.file) as partial:
            partial.write_text("".join(f"{line}\n" for line in kept), "utf-8")

    def _step_of(self, line: str, number: int) -> int:
        """Return the step of a row, or raise `TrainingError` if it is none."""
        row = parse_json(line, f"line {number} of {self.file}", error=TrainingError)
        step = row.get("step")
        if not isinstance(step, int) or isinstance(step, bool):
            raise TrainingError(
                f"line {number} of {self.file} is no row of a run: move the file away, and the run "
                "goes on without its older rows"
            )
        return step

    def write(self, step: int, row: Row) -> None:
        """Add a row, which says of itself after which step it was made.

        Raises:
            OutputError: if it cannot be written.
        """
        with typed_write_errors(self.file, self.file.parent):
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **row}) + "\n")
            if self.board is not None:
                for name, value in row.items():
                    self.board.add_scalar(name, value, step)
                self.board.flush()

    def close(self) -> None:
        """Close the events of TensorBoard, whose writer is a thread with an open file."""
        if self.board is not None:
            with typed_write_errors(self.file, self.file.parent):
                self.board.close()


def _open_board(folder: Path, step: int) -> Any:
    """Return a TensorBoard writer that goes on behind `step`; None where it is not installed."""
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder, purge_step=step + 1)


class Reporter:
    """Tell of a run while it goes on. The first process writes the log and shows the bar.

    It also passes a hundred rows of figures to `logging`, for whoever listens.

    Args:
        folder: of the run.
        step: the steps that were made before.
        steps: the steps of the whole run.
    """

    def __init__(self, folder: Path, step: int, steps: int) -> None:
        from tqdm import tqdm

        first = distributed.is_first()
        self._log = Log(folder, step) if first else None
        # None shows the bar on a terminal alone.
        self._bar = tqdm(total=steps, initial=step, disable=None if first else True, unit="step")
        self._known_reasons: set[str] = set()
        self._steps = steps
        self._told = -steps  # the last step that `logging` was told of
        self._images = 0
        self._started = time.perf_counter()

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()
        if self._log is not None:
            self._log.close()
            if broken := len(self._known_reasons):
                _logger.info("left out, since they cannot be read: %s", number_of(broken, "image"))

    def count(self, images: int, skipped: Sequence[str]) -> None:
        """Note one step of this process, and tell once of each image that was skipped, and why."""
        self._images += images * distributed.world_size()
        for reason in set(skipped) - self._known_reasons:
            self._bar.write(f"skipped: {visible(reason)}", file=sys.stderr)
        self._known_reasons.update(skipped)

    def images_per_second(self) -> float:
        """Return the pace of all processes together since the last row."""
        seconds = time.perf_counter() - self._started
        return self._images / max(seconds, 1e-9)  # some clocks tick rarely

    def show(self, row: Row) -> None:
        """Put the chief figures of a row beside the bar."""
        self._bar.set_postfix({name: f"{row[name]:.4g}" for name in _ON_THE_BAR})

    def write(self, step: int, row: Row) -> None:
        """Add a row to the log, and measure the pace anew."""
        if self._log is not None:
            self._log.write(step, row)
            self._tell(step, row)
        self._images = 0
        self._started = time.perf_counter()

    def _tell(self, step: int, row: Row) -> None:
        is_due = step == self._steps or step >= self._told + self._steps / _MAX_LINES
        if is_due:
            self._told = step
            shown = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in row.items()]
            _logger.info("step %d of %d: %s", step, self._steps, ", ".join(shown))

    def advance(self) -> None:
        """Move the bar by one step."""
        self._bar.update()


def as_row(figures: object) -> Row:
    """Return what a function that measures a model gave, as plain numbers by name.

    Args:
        figures: a mapping from names to numbers: of Python, of NumPy, or tensors of one element.

    Raises:
        ConfigError: for anything else.
    """
    if not isinstance(figures, Mapping):
        raise ConfigError(f"evaluate must return numbers by name, not {figures!r}")
    named = cast("Mapping[object, object]", figures)
    return {_as_name(name): _as_number(name, value) for name, value in named.items()}


def _as_name(name: object) -> str:
    if not isinstance(name, str) or name == "step":
        raise ConfigError(
            f"evaluate must return numbers by name, and no name may be {name!r}: rows have one "
            "of their own by 'step'"
        )
    return name


def _as_number(name: object, value: Any) -> float:
    if isinstance(value, Tensor):
        value = value.detach()  # a parameter as it is would warn
    try:
        if isinstance(value, str | bytes):
            raise TypeError("a text is no number")
        return float(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"evaluate must return numbers by name, but {name!r} is {value!r}: {error}"
        ) from error
