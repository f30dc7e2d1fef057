"""Both towers, fine-tuned on captions."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipkit import CLIP
from clipkit.classify.metrics import recall_at_k
from clipkit.data.labelled import Pairs, read_table
from clipkit.encode.embed import embed_images, embed_texts
from clipkit.encode.fingerprints import fingerprint_0_1_0
from clipkit.errors import ConfigError, DataError
from clipkit.training.config import TrainConfig
from clipkit.training.finetune import finetune_captions
from tests.helpers.models import assert_same_weights
from tests.helpers.toy_data import caption_table
from tests.helpers.training_worker import state_of

QUICK = TrainConfig(steps=4, lr=1e-3, warm_up=1, save_every=0)


def state(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())


def recalls(model: CLIP, pairs: Pairs) -> tuple[float, float]:
    """Return recall at 1 both ways."""
    images = embed_images(model, pairs.files)
    texts = embed_texts(model, [captions[0] for captions in pairs.captions])
    return recall_at_k(images, texts), recall_at_k(texts, images)


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """Return two colors side by side, captioned in their order: three images of each of 16."""
    return read_table(caption_table(tmp_path_factory.mktemp("train"), each=3))


@pytest.fixture(scope="module")
def test(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """Return one other image of each of the 16."""
    return read_table(caption_table(tmp_path_factory.mktemp("test"), seed=900))


def test_captions_improve_retrieval(model: CLIP, train: Pairs, test: Pairs, tmp_path: Path) -> None:
    before = recalls(model, test)
    given = state(model)
    config = TrainConfig(steps=150, lr=2e-3, warm_up=10, weight_decay=0.1, save_every=0)
    tuned = finetune_captions(model, train, tmp_path, batch_size=16, alpha=1, config=config)
    after = recalls(tuned, test)
    assert max(before) <= 0.25
    assert min(after) >= 0.7
    assert_same_weights(state(model), given)
    assert not tuned.training
    saved = CLIP.from_pretrained(tmp_path / "model", device="cpu")
    assert_same_weights(state(saved), state(tuned))


def test_captions_interpolate_with_the_start(model: CLIP, train: Pairs, tmp_path: Path) -> None:
    old, half, new = (
        finetune_captions(model, train, tmp_path / str(a), epochs=1, batch_size=16, alpha=a)
        for a in (0, 0.5, 1)
    )
    assert_same_weights(state(old), state(model))
    for first, middle, last in zip(
        *(m.state_dict().values() for m in (old, half, new)), strict=True
    ):
        torch.testing.assert_close(middle, (first + last) / 2, rtol=1e-5, atol=1e-6)
    name = "text.text_projection"
    assert not torch.equal(new.state_dict()[name], model.state_dict()[name])


def test_a_run_of_0_1_0_goes_on(model: CLIP, train: Pairs, tmp_path: Path) -> None:
    """It knew a model by another digest."""
    first = finetune_captions(model, train, tmp_path, batch_size=8, config=QUICK)
    written = state_of(tmp_path / "run")
    written["identity"][1] = fingerprint_0_1_0(model)
    torch.save(written, tmp_path / "run" / "checkpoint.pt")
    second = finetune_captions(model, train, tmp_path, batch_size=8, config=QUICK)
    assert_same_weights(state(first), state(second))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, DataError, "batch_size 0"),
        ({"epochs": 0}, ConfigError, "epochs must be a positive integer, not 0"),
        ({"epochs": -1}, ConfigError, "epochs must be a positive integer, not -1"),
        ({"alpha": -0.1}, ConfigError, "alpha must be from 0.* not -0.1"),
        ({"config": QUICK, "epochs": 3}, ConfigError, "config= says .*: epochs would be ignored"),
        (
            {"config": QUICK, "epochs": 3, "lr": 1e-4},
            ConfigError,
            "config= says .*: epochs and lr would be ignored",
        ),
    ],
)
def test_refuses_impossible_options(
    model: CLIP,
    train: Pairs,
    tmp_path: Path,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        finetune_captions(model, train, tmp_path, **options)
    assert not list(tmp_path.iterdir())
