"""Find the state dict in what training loops save."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipkit.checkpoints.nesting import unwrap_state_dict
from clipkit.checkpoints.weights import read_weights
from clipkit.errors import CorruptCheckpointError
from tests.helpers.models import assert_same_weights


def test_unwraps_wrappers_and_prefixes() -> None:
    state = {"a.weight": torch.ones(2), "b": torch.zeros(1)}
    for prefix in ("", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."):
        prefixed = {prefix + name: tensor for name, tensor in state.items()}
        for wrapped in (
            prefixed,
            {"state_dict": prefixed, "epoch": 1, "anything": object()},
            {"model": prefixed},
            {"model_state_dict": {"state_dict": prefixed}},
            {**prefixed, "epoch": 4, "optimizer": {}},
        ):
            before = dict(wrapped)
            assert_same_weights(unwrap_state_dict(wrapped), state)
            assert list(wrapped) == list(before)
            assert all(wrapped[name] is before[name] for name in before)


def test_prefixes_that_are_not_shared_stay() -> None:
    state = {"module.a": torch.ones(2), "b": torch.zeros(1)}
    assert_same_weights(unwrap_state_dict(state), state)


def test_unwraps_parameters_without_copying() -> None:
    weight = nn.Parameter(torch.ones(2))
    unwrapped = unwrap_state_dict({"w": weight})["w"]
    assert type(unwrapped) is Tensor
    assert unwrapped.data_ptr() == weight.data_ptr()
    assert weight.requires_grad


CYCLE: dict[str, Any] = {}
CYCLE["model"] = CYCLE


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        (torch.ones(1), "holds a Tensor, not a state dict"),
        ([torch.ones(1)], "holds a list"),
        ({}, "holds no tensors"),
        ({"epoch": 1, "optimizer": {}}, "holds no tensors"),
        ({"state_dict": {}}, "holds no tensors"),
        ({"w": torch.ones(1), "note": "hello"}, "entry 'note' that is a str"),
        ({1: torch.ones(1)}, "entry 1 "),
        (CYCLE, "nests without end"),
    ],
)
def test_no_state_dict(obj: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(CorruptCheckpointError, match=message):
        unwrap_state_dict(obj)
    torch.save(obj, tmp_path / "x.pt")
    with pytest.raises(
        CorruptCheckpointError, match=rf"x\.pt \([\d,]+ bytes\) .*{message}.*state_dict\(\) alone"
    ):
        read_weights(tmp_path / "x.pt")


def test_lightning_prefixes_every_name() -> None:
    saved = {"state_dict": {"model.logit_scale": torch.tensor(1.0)}, "epoch": 3}
    assert list(unwrap_state_dict(saved)) == ["logit_scale"]
