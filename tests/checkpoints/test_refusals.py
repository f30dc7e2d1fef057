"""What would load and be wrong, or fail inside torch, is refused with a typed error before it does."""

from typing import Any

import pytest
import torch

import clipkit
from clipkit.checkpoints import infer, layouts
from clipkit.checkpoints.weights import unwrap_state_dict
from clipkit.errors import ConfigError, UnknownModelError, UnsupportedCheckpointError

TRANSFORMERS = {"model_type": "clip", "vision_config": {}, "text_config": {}}


def test_another_tokenizer_in_an_open_clip_config() -> None:
    text = {"width": 64, "heads": 1, "layers": 1, "hf_tokenizer_name": "someone/other-words"}
    values = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8},
    }
    with pytest.raises(
        UnsupportedCheckpointError, match="hf_tokenizer_name = 'someone/other-words'"
    ):
        infer.from_open_clip(values | {"text_cfg": text})


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_here(device) -> None:
    with pytest.raises(ConfigError, match=f"there is no device '{device}' here"):
        clipkit.load("tiny", device)


@pytest.mark.parametrize("name", ["", "~nobody-of-this-name/x", "a" * 300, "a\0b"])
def test_names_that_no_path_can_have(name: str) -> None:
    with pytest.raises(UnknownModelError, match="is no published model"):
        clipkit.load(name, "cpu")


@pytest.mark.parametrize(
    "wrong",
    [
        torch.ones(2, 2, dtype=torch.int8),
        torch.ones(2, 2, dtype=torch.complex64),
        torch.ones(2, 2).to_sparse(),
        torch.ones(2, 2, device="meta"),
    ],
)
def test_weights_that_are_no_dense_floats(wrong: Any) -> None:
    good = {"w": torch.ones(2, 2), "n": torch.tensor(0)}
    assert (
        layouts.describe_mismatch(good, {"w": torch.ones(2, 2).half(), "n": torch.tensor(1)})
        is None
    )
    assert "! w holds" in (layouts.describe_mismatch(good, good | {"w": wrong}) or "")
    assert "! n holds" in (layouts.describe_mismatch(good, good | {"n": torch.tensor(0.5)}) or "")


def test_lightning_prefixes_every_name() -> None:
    weights = unwrap_state_dict(
        {"state_dict": {"model.logit_scale": torch.tensor(1.0)}, "epoch": 3}
    )
    assert list(weights) == ["logit_scale"]


@pytest.mark.parametrize(
    "name", ["someone/my-eva-clip2", "user/clip-vitamins-classifier", "user/coca-cola-clip"]
)
def test_plain_models_of_an_unlucky_name_are_not_refused(name: str) -> None:
    from clipkit.checkpoints import registry

    registry.refuse(name)
