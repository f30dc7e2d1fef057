"""Write one model's files in every way in which CLIPs are published.

Each `write_*` function writes into an existing folder and returns the path of the weight file.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from clipkit import CLIP, Tokenizer
from clipkit.checkpoints import layouts
from clipkit.checkpoints.describe import to_open_clip, to_transformers
from clipkit.files import write_weights

Write = Callable[[CLIP, Path], Path]


def write_json(path: Path, values: Any) -> None:
    """Write `values` as JSON."""
    path.write_text(json.dumps(values), "utf-8")


def read_files(folder: Path) -> dict[str, bytes]:
    """Return the content of each file in a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write_clipkit(model: CLIP, folder: Path) -> Path:
    """Write clipkit's own layout."""
    path = folder / "model.safetensors"
    write_json(folder / "config.json", {"format": "clipkit", "model": model.config.to_dict()})
    write_weights(model.state_dict(), path)
    return path


def write_open_clip(model: CLIP, folder: Path, name: str = "open_clip_model.safetensors") -> Path:
    """Write open_clip's layout."""
    state = layouts.from_canonical(model.state_dict(), "openai")
    state["logit_scale"] = state["logit_scale"].reshape(1)  # as some files have it
    write_json(folder / "open_clip_config.json", to_open_clip(model.config))
    if name.endswith(".bin"):
        torch.save(state, folder / name)
    else:
        write_weights(state, folder / name)
    return folder / name


def write_open_clip_bin(model: CLIP, folder: Path) -> Path:
    """Write open_clip's layout with a torch pickle."""
    return write_open_clip(model, folder, "open_clip_pytorch_model.bin")


def write_open_clip_g14(model: CLIP, folder: Path) -> Path:
    """Write open_clip's layout under the file name of the published g-14 models."""
    return write_open_clip(model, folder, "open_clip_pytorch_model.safetensors")


def write_custom_text(model: CLIP, folder: Path) -> Path:
    """Write open_clip's layout as its "custom text" models have it, with canonical names."""
    path = folder / "open_clip_pytorch_model.bin"
    values = to_open_clip(model.config)
    values["model_cfg"]["custom_text"] = True
    write_json(folder / "open_clip_config.json", values)
    torch.save(model.state_dict() | {"text.attn_mask": torch.zeros(16, 16)}, path)
    return path


def write_training_checkpoint(model: CLIP, folder: Path) -> Path:
    """Write as open_clip trains under DistributedDataParallel and torch.compile."""
    path = folder / "epoch_3.pt"
    write_json(folder / "open_clip_config.json", to_open_clip(model.config))
    state = layouts.from_canonical(model.state_dict(), "openai")
    prefixed = {f"module._orig_mod.{name}": value for name, value in state.items()}
    content = {"epoch": 3, "name": "run", "state_dict": prefixed, "optimizer": {"state": {}}}
    torch.save(content, path)
    return path


def write_transformers(model: CLIP, folder: Path) -> Path:
    """Write transformers' layout."""
    path = folder / "model.safetensors"
    for name, values in to_transformers(model.config, Tokenizer([])).items():
        write_json(folder / name, values)
    write_weights(layouts.from_canonical(model.state_dict(), "transformers"), path)
    return path


def write_transformers_bin(model: CLIP, folder: Path) -> Path:
    """Write as old versions of transformers do, with the positions' indices among the weights."""
    write_transformers(model, folder).unlink()
    path = folder / "pytorch_model.bin"
    state = layouts.from_canonical(model.state_dict(), "transformers")
    for tower, count in (("vision", 10), ("text", 16)):
        state[f"{tower}_model.embeddings.position_ids"] = torch.arange(count)[None]
    torch.save(state, path)
    return path


def write_transformers_shards(model: CLIP, folder: Path) -> Path:
    """Write transformers' layout in two shards."""
    write_transformers(model, folder).unlink()
    path = folder / "model.safetensors.index.json"
    state = layouts.from_canonical(model.state_dict(), "transformers")
    names = sorted(state)
    shard_of: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        shard = f"model-{number:05}-of-00002.safetensors"
        write_weights({name: state[name] for name in part}, folder / shard)
        shard_of |= dict.fromkeys(part, shard)
    write_json(path, {"metadata": {}, "weight_map": shard_of})
    return path


FOR_ALL: list[Write] = [
    write_clipkit,
    write_open_clip,
    write_open_clip_bin,
    write_open_clip_g14,
    write_custom_text,
    write_training_checkpoint,
]
FOR_VIT: list[Write] = [write_transformers, write_transformers_bin, write_transformers_shards]
