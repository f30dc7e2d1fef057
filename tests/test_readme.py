"""What the README shows runs as it stands, on the embedded checkpoint in place of a downloaded one."""

import re
from pathlib import Path

import pytest
import torch

import clipkit

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_python_blocks_run(dtype, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert len(blocks) == 3
    load = clipkit.load
    monkeypatch.setattr(clipkit, "load", lambda name: load("tiny", "cpu", dtype=dtype))
    monkeypatch.chdir(ROOT / "examples" / "photos")
    names: dict = {}
    exec("\n".join(blocks).replace("photo.jpg", "cat.jpg"), names)
    assert names["probabilities"].shape == (1, 2)
    assert names["probabilities"].sum() == pytest.approx(1, abs=1e-3)
    assert all(p.grad is not None for p in names["model"].parameters())
