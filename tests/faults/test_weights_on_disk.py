"""Test that a model outlives whatever happens to the file that it was loaded from."""

import os
from pathlib import Path

import pytest
import torch

import clipkit
from tests.helpers.models import VIT, assert_same_weights, random_clip
from tests.helpers.processes import start
from tests.helpers.weight_files import mapped_file

# A process that touches a truncated map dies of a bus error, so another process does it.
OVERWRITE = """
import os, sys
import torch
import clipkit
from tests.helpers.models import VIT, assert_same_weights

path, how = sys.argv[1:]
mine, _ = clipkit.load(path, config=VIT, device="cpu")
before = {name: value.clone() for name, value in mine.state_dict().items()}
if how == "save":
    torch.save(mine.state_dict(), path)
else:
    os.truncate(path, 100)
assert_same_weights(mine.state_dict(), before)
"""


# Kind B: weights stay mapped to the file that they came from.
@pytest.mark.parametrize("how", ["save", "truncate"])
@pytest.mark.parametrize("name", ["mine.pt", "legacy.pt", "folder"])
def test_a_model_outlives_its_file(name: str, how: str, tmp_path: Path) -> None:
    model = random_clip(VIT)
    path = tmp_path / name
    if name == "folder":
        model.save_pretrained(path)
        path = path / "model.safetensors"
    else:
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=name != "legacy.pt")
    process = start(["-c", OVERWRITE, str(path), how])
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 0, error
    if how == "save":
        again, _ = clipkit.load(path, config=VIT, device="cpu")
        assert_same_weights(again.state_dict(), model.state_dict())
    else:
        assert os.path.getsize(path) == 100


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_only_files_that_nothing_rewrites_stay_mapped(tmp_path: Path) -> None:
    model, _ = clipkit.load("tiny", device="cpu")
    model.save_pretrained(tmp_path)
    own, _ = clipkit.load(tmp_path, device="cpu")
    assert {mapped_file(value) for value in own.state_dict().values()} == {""}
