"""Test that logits of a cross-validation come from heads that did not see their images."""

from typing import Any

import pytest
import torch
from torch import Tensor

from clipkit.classify.cross_validation import WITHOUT_TEXT, cross_validated
from clipkit.classify.few_shot import METHODS, fit_head
from clipkit.classify.heads import CosineHead, LinearHead
from clipkit.errors import ConfigError, DataError
from tests.helpers.support_sets import CLASSES, NEEDED, WIDTH, ZERO_SHOT, draw, snapshot, unit

QUICK: dict[str, dict[str, Any]] = {
    method: {"epochs": 2}
    for method in ("zero_shot_linear", "random_linear", "cache_finetuned", "lp_plus_plus")
}
GAUSSIAN = {"alpha": 1.0}


def options_of(method: str) -> dict[str, Any]:
    """Return options with which a method is fitted soon."""
    return NEEDED[method] | QUICK.get(method, {})


def fold_mates(features: Tensor, labels: Tensor, image: int, **settings: Any) -> list[int]:
    """Return the images whose logits do not change when an image does, so that was held out."""
    changed = features.clone()
    changed[image] = unit(1, WIDTH, seed=99)[0]
    first = cross_validated(features, labels, ZERO_SHOT, "gaussian", GAUSSIAN, **settings)
    other = cross_validated(changed, labels, ZERO_SHOT, "gaussian", GAUSSIAN, **settings)
    same = (first.logits == other.logits).all(dim=1)
    return first.indices[same].tolist()


def test_an_image_has_no_part_in_the_fit_that_classifies_it() -> None:
    features, labels = draw(4, 4, 4, 4, 4, 4)
    found = cross_validated(features, labels, ZERO_SHOT, "gaussian", GAUSSIAN)
    assert found.logits.shape == (24, CLASSES)
    assert found.logits.dtype == torch.float32
    assert found.indices.tolist() == list(range(24))
    assert found.folds == 4
    assert not found.pessimistic
    for image in range(24):
        mates = fold_mates(features, labels, image)
        held_out = torch.tensor([*mates, image])
        assert labels[held_out].sort().values.tolist() == list(range(CLASSES))
        keep = torch.ones(24, dtype=torch.bool)
        keep[held_out] = False
        head, _ = fit_head(features[keep], labels[keep], ZERO_SHOT, "gaussian", alpha=1.0)
        with torch.no_grad():
            torch.testing.assert_close(found.logits[image], head(features[held_out])[-1])


def test_folds_are_as_many_as_asked_for_and_as_images_allow() -> None:
    features, labels = draw(6, 3, 2, 2, 2, 2)
    for folds, expected in ((2, 2), (5, 5), (6, 6), (9, 6)):
        found = cross_validated(features, labels, ZERO_SHOT, "gaussian", GAUSSIAN, folds=folds)
        assert found.folds == expected
        assert found.indices.tolist() == list(range(17))


def test_a_class_with_one_image_is_not_held_out_beside_others() -> None:
    features, labels = draw(3, 1, 2, 1, 0, 2)
    found = cross_validated(features, labels, ZERO_SHOT, "gaussian", GAUSSIAN)
    assert sorted(labels[found.indices].tolist()) == [0, 0, 0, 2, 2, 5, 5]
    assert found.indices.tolist() == sorted(found.indices.tolist())
    assert not found.pessimistic


def test_single_images_are_held_out_where_there_is_nothing_else() -> None:
    features, labels = draw(1, 1, 1, 1, 1, 1)
    found = cross_validated(features, labels, ZERO_SHOT, "cache", {"alpha": 1.0, "beta": 2.0})
    assert found.pessimistic
    assert found.folds == 4
    assert found.indices.tolist() == list(range(6))
    with torch.no_grad():
        texts = ZERO_SHOT(features)
    for image in range(6):  # its own class has no image in the cache, and keeps its text's logit
        own = labels[image]
        torch.testing.assert_close(found.logits[image, own], texts[image, own])
        assert not found.logits[image].allclose(texts[image])


@pytest.mark.parametrize("method", WITHOUT_TEXT)
def test_methods_that_know_classes_by_images_need_two_of_one(method: str) -> None:
    features, labels = draw(1, 1, 1, 1, 1, 1)
    with pytest.raises(DataError, match=f"{method} knows nothing of a class without images"):
        cross_validated(features, labels, ZERO_SHOT, method)
    assert cross_validated(*draw(2, 1, 1, 1, 1, 1), ZERO_SHOT, method).folds == 2


def test_a_class_of_the_other_methods_keeps_its_text() -> None:
    """So that what is said of single images is worth something: it is far above chance."""
    features, labels = draw(1, 1, 1, 1, 1, 1, noise=0.2)
    for method in METHODS:
        if method not in WITHOUT_TEXT:
            found = cross_validated(features, labels, ZERO_SHOT, method, options_of(method))
            assert (found.logits.argmax(dim=1) == labels).sum() >= 3, method


@pytest.mark.parametrize("method", METHODS)
def test_every_method(method: str) -> None:
    features, labels = draw(3, 3, 3, 3, 3, 3)
    before = snapshot(ZERO_SHOT)
    first = cross_validated(features, labels, ZERO_SHOT, method, options_of(method), seed=1)
    torch.rand(3)
    again = cross_validated(features, labels, ZERO_SHOT, method, options_of(method), seed=1)
    assert first.logits.isfinite().all()
    assert first.logits.equal(again.logits)
    assert all(before[name].equal(value) for name, value in snapshot(ZERO_SHOT).items())


def test_the_seed_draws_the_folds() -> None:
    features, labels = draw(2, 2, 2, 2, 2, 2)
    assert fold_mates(features, labels, 0, seed=0) == fold_mates(features, labels, 0, seed=0)
    drawn = {tuple(fold_mates(features, labels, 0, seed=seed)) for seed in range(8)}
    assert len(drawn) > 1


def test_half_precision_and_options_that_are_not_given() -> None:
    features, labels = draw(2, 2, 2, 2, 2, 2)
    whole = cross_validated(features.half().float(), labels, ZERO_SHOT, "gaussian", GAUSSIAN)
    given = {"alpha": 1.0, "strength": None}
    half = cross_validated(features.half(), labels.tolist(), ZERO_SHOT, "gaussian", given)
    torch.testing.assert_close(half.logits, whole.logits)


@pytest.mark.parametrize("folds", [1, 0, 2.0, True, "4"])
def test_folds_are_a_count(folds: Any) -> None:
    with pytest.raises(ConfigError, match="folds must be an integer of at least 2"):
        cross_validated(*draw(2, 2, 2, 2, 2, 2), ZERO_SHOT, folds=folds)


def test_what_cannot_be_used_is_refused() -> None:
    features, labels = draw(2, 2, 2, 2, 2, 2)
    with pytest.raises(DataError, match="a label for each image, not 11 for 12"):
        cross_validated(features, labels[:11], ZERO_SHOT)
    with pytest.raises(DataError, match="integers from 0 to 5, not from 0 to 6"):
        cross_validated(features, labels.clamp(max=4) + 2 * (labels > 4), ZERO_SHOT)
    with pytest.raises(DataError, match="not names"):
        cross_validated(features, ["a"] * 12, ZERO_SHOT)
    with pytest.raises(DataError, match="nothing can be held out of 1 image:"):
        cross_validated(features[:1], labels[:1], ZERO_SHOT)
    with pytest.raises(ConfigError, match="method must be one of"):
        cross_validated(features, labels, ZERO_SHOT, "best")
    with pytest.raises(ConfigError, match="prompt_weights needs captions"):
        cross_validated(features, labels, ZERO_SHOT, "prompt_weights")
    with pytest.raises(ConfigError, match="gaussian takes no strength"):
        cross_validated(features, labels, ZERO_SHOT, "gaussian", {"strength": 1.0})
    with pytest.raises(DataError, match="unit length"):
        cross_validated(2 * features, labels, ZERO_SHOT)


def test_two_images_are_enough() -> None:
    zero_shot = CosineHead(torch.eye(2), torch.tensor(2.0))
    found = cross_validated(torch.eye(2), [0, 1], zero_shot, "cache", {"alpha": 1.0, "beta": 1.0})
    assert found.folds == 2
    assert found.pessimistic
    assert found.logits.argmax(dim=1).tolist() == [0, 1]


def test_the_seed_is_that_of_the_fits_too() -> None:
    features, labels = draw(2, 2, 2, 2, 2, 2)
    keep = torch.ones(12, dtype=torch.bool)
    keep[[0, *fold_mates(features, labels, 0, seed=5)]] = False
    head, _ = fit_head(features[keep], labels[keep], ZERO_SHOT, "random_linear", seed=5, epochs=2)
    found = cross_validated(features, labels, ZERO_SHOT, "random_linear", {"epochs": 2}, seed=5)
    with torch.no_grad():
        torch.testing.assert_close(found.logits[0], head(features)[0])


def test_logits_are_spread_like_those_of_a_head_that_saw_all() -> None:
    features, labels = draw(4, 4, 4, 4, 4, 4)
    plain = cross_validated(features, labels, ZERO_SHOT, "gaussian", GAUSSIAN)
    head, _ = fit_head(features, labels, ZERO_SHOT, "gaussian", alpha=1.0)
    triple = LinearHead(3 * head.to_linear().weight, 3 * head.to_linear().bias)
    found = cross_validated(features, labels, ZERO_SHOT, "gaussian", GAUSSIAN, like=head)
    thrice = cross_validated(features, labels, ZERO_SHOT, "gaussian", GAUSSIAN, like=triple)
    torch.testing.assert_close(thrice.logits, 3 * found.logits, rtol=1e-4, atol=1e-3)
    factors = (found.logits / plain.logits).mean(dim=1)
    assert len({round(factor, 3) for factor in factors.tolist()}) == 4  # one for each fold
    mates = torch.tensor([*fold_mates(features, labels, 0), 0])
    keep = torch.ones(24, dtype=torch.bool)
    keep[mates] = False
    fold, _ = fit_head(features[keep], labels[keep], ZERO_SHOT, "gaussian", alpha=1.0)
    with torch.no_grad():
        spreads = [each(features[keep]).numpy().std(axis=1).mean() for each in (head, fold)]
    assert factors[0].item() == pytest.approx(spreads[0] / spreads[1], rel=1e-4)
