"""Know the checkpoint that lies in the package itself, without its weights."""

from pathlib import Path

from clipkit.config import CLIPConfig
from clipkit.files import read_json

EMBEDDED = Path(__file__).parents[1] / "assets" / "tiny"


def embedded_config() -> CLIPConfig:
    """Return what the embedded checkpoint is made of."""
    return CLIPConfig.from_dict(read_json(EMBEDDED / "config.json")["model"])


def embedded_bytes() -> int:
    """Return the size of its weights on the disk."""
    return (EMBEDDED / "model.safetensors").stat().st_size
