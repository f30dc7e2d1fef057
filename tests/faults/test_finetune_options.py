"""Options of fine-tuning are checked before the held-out images are encoded."""

from pathlib import Path
from typing import Any

import pytest

from clipkit import CLIP, finetune, read_folder, read_pairs
from clipkit.errors import ClipkitError, ConfigError
from clipkit.training.run import finetune_from


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 7.0}, "alpha"),
        ({"epochs": 0}, "epochs must be a positive integer, not 0"),
        ({"blocks": 99}, "99 of them cannot be trained"),
        ({"batch_size": 0}, "batch_size 0 must be an integer of at least 1"),
        ({"lr": -1.0}, "lr"),
        ({"head_only": True, "epochs": 3}, "epochs would be ignored"),
    ],
)
def test_impossible_options_are_told_before_the_work(
    options: dict[str, Any], message: str, place: Path, toy: CLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CLIP, "encode_image", lambda *_: pytest.fail("encoded in vain"))
    with pytest.raises(ClipkitError, match=message):
        finetune_from(read_pairs(place / "images"), place / "out", toy, **options)


def test_a_model_may_be_named(place: Path, toy: CLIP) -> None:
    toy.save_pretrained(place / "model")
    pairs = read_folder(place / "images")
    named = finetune(str(place / "model"), pairs, place / "a", head_only=True)
    assert named.labels == finetune(toy, pairs, place / "b", head_only=True).labels
    with pytest.raises(ClipkitError, match="no-such-model"):
        finetune("no-such-model", pairs, place / "c", lora=2)


def test_a_guard_that_would_be_ignored_is_refused(place: Path, toy: CLIP) -> None:
    pairs = read_folder(place / "images")
    for head_only in (False, True):
        with pytest.raises(ConfigError, match="guard=False would be ignored without lora=: leave"):
            finetune(toy, pairs, place / "out", head_only=head_only, guard=False)
