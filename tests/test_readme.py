"""What the README shows runs as it stands, on the embedded checkpoint in place of a downloaded one."""

import re
import shutil
from pathlib import Path

import pytest
import torch

import clipkit

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_python_blocks_run(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert len(blocks) == 5
    load = clipkit.load
    monkeypatch.setattr(clipkit, "load", lambda name, dtype=dtype: load("tiny", "cpu", dtype=dtype))
    photos = ROOT / "examples" / "photos"
    for name, source in {
        "photo": "cat",
        "cat1": "cat",
        "cat2": "cat",
        "dog1": "coffee",
        "dog2": "rocket",
    }.items():
        shutil.copy(photos / f"{source}.jpg", tmp_path / f"{name}.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec("\n".join(blocks), names)
    assert names["classifier"].labels == ["cat", "dog", "rocket", "bicycle"]
    assert (tmp_path / "pets.onnx").exists()
    assert names["probabilities"].shape == (1, 2)
    assert names["probabilities"].sum() == pytest.approx(1, abs=1e-3)
    assert all(p.grad is not None for p in names["model"].parameters())
    assert names["fast"].optimizations and names["half"].dtype == torch.bfloat16
