"""Write small run files for `clipkit train`, and read back what such runs leave."""

import json
from pathlib import Path
from typing import Any

TRAIN = {"steps": 6, "lr": 1e-3, "warm_up": 1, "log_every": 1, "save_every": 2}
WHOLE = {"data": "images", "out": "run", "batch_size": 8, "train": TRAIN, "init": "start"}


def write_run_file(folder: Path, changes: dict[str, Any] | None = None) -> Path:
    """Write the file WHOLE with changes. A field of None is left out."""
    values = WHOLE | (changes or {})
    content = {name: value for name, value in values.items() if value is not None}
    (folder / "train.json").write_text(json.dumps(content))
    return folder / "train.json"
