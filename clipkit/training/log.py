"""The log of a run: one JSON object a line, and the events of TensorBoard where that is installed."""

import json
from pathlib import Path
from typing import Any

from clipkit.files import replacing


class Log:
    """Writes rows to `log.jsonl` and `tensorboard/` in a folder, for the steps after `step`.

    Rows of later steps, which will be made again, are dropped, and so is a last one that was cut off.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.file, self.board = folder / "log.jsonl", _board(folder / "tensorboard", step)
        if self.file.exists():
            rows = [row for row in self.file.read_text().splitlines() if row.endswith("}")]
            with replacing(self.file) as partial:
                partial.write_text(
                    "".join(f"{row}\n" for row in rows if json.loads(row)["step"] <= step)
                )

    def write(self, row: dict[str, Any]) -> None:
        """Add a row; `step` is one of its keys, the values of the others are numbers."""
        with self.file.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self.board is not None:
            for key in row.keys() - {"step"}:
                self.board.add_scalar(key, row[key], row["step"])
            self.board.flush()


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder, purge_step=step + 1)
