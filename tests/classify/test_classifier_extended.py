"""clipkit.classify.classifier: classes that are added without fitting, and their templates."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from clipkit import CLIP, ImageClassifier, zero_shot_weights
from clipkit.classify.few_shot import METHODS
from clipkit.classify.heads import CacheHead, CosineHead, LinearHead, WeightedPromptHead
from clipkit.errors import ConfigError
from tests.helpers.toy_classifier import (
    EXTENDED,
    NAMES,
    RAGGED,
    assert_close,
    fitted,
    head_logits,
    state_of,
)

pytestmark = pytest.mark.usefixtures("quick_fits")

Few = tuple[Tensor, Tensor]

MORE: dict[str, Any] = {"yellow": ["yellow", "amber"], "black": "black"}
OWN = ["the {}", "{}"]
REFUSED = [method for method in METHODS if method not in EXTENDED]


def expected_scale(classifier: ImageClassifier, method: str) -> float:
    """Return what multiplies cosines in the head's logits."""
    if method in ("anchored", "lp_plus_plus", "proker", "projection"):
        assert isinstance(classifier.head, CacheHead if method == "proker" else LinearHead)
        assert classifier.head.scale is not None  # its value is tested with the method
        return classifier.head.scale
    if method == "prompt_weights":
        assert isinstance(classifier.head, WeightedPromptHead)
        fitted_scale = classifier.head.logit_scale.exp().item()
        assert fitted_scale != classifier.model.logit_scale.exp().item()
        return fitted_scale
    return classifier.model.logit_scale.exp().item()


@pytest.mark.parametrize("method", EXTENDED)
def test_new_classes_leave_the_logits_of_the_old(toy: CLIP, few: Few, method: str) -> None:
    """A new class has the logit that zero-shot gives it, at the temperature of the others."""
    features, _ = few
    classifier = fitted(toy, few, method)
    old = head_logits(classifier, features)
    provenance = copy.deepcopy(classifier.provenance)
    scale = expected_scale(classifier, method)
    assert classifier.head.scale == pytest.approx(scale)
    assert classifier.add_classes(MORE, OWN) is classifier
    new = head_logits(classifier, features)
    assert new.shape == (22, 6)
    assert not classifier.head.training
    assert_close(new[:, :4], old, atol=1e-4)
    cosines = features @ zero_shot_weights(toy, MORE, OWN).T
    assert_close(new[:, 4:], scale * cosines, atol=1e-4)
    assert classifier.head.scale == pytest.approx(scale)
    if "counts" in provenance:
        provenance["counts"] += [0, 0]
    assert classifier.labels == [*RAGGED, *MORE]
    assert classifier.provenance == provenance


@pytest.mark.parametrize("method", EXTENDED)
def test_the_zero_shot_head_is_that_of_all_prompts(toy: CLIP, few: Few, method: str) -> None:
    features, _ = few
    classifier = fitted(toy, few, method).add_classes(MORE, OWN)
    every = {
        "blue": ["a blue.", "a navy.", "a sky."],
        "dark red": ["a dark red."],
        "green": ["a green.", "a olive."],
        "white": ["a white."],
        "yellow": ["the yellow", "yellow", "the amber", "amber"],
        "black": ["the black", "black"],
    }
    whole = ImageClassifier.zero_shot(toy, every, None)
    assert_close(classifier.zero_shot_head(features), whole.zero_shot_head(features))
    assert classifier.prompts == whole.prompts
    if method == "zero_shot":
        assert_close(head_logits(classifier, features), whole.head(features))


def test_an_anchored_head_that_stayed_zero_shot_is_zero_shot_of_all_names(
    toy: CLIP, few: Few
) -> None:
    classifier = ImageClassifier.zero_shot(toy, NAMES).fit(*few, strength=float("inf"))
    classifier.add_classes(["yellow"]).add_classes(["black"])
    whole = zero_shot_weights(toy, [*NAMES, "yellow", "black"])
    assert classifier.head.scale is not None
    expected = classifier.head.scale * few[0] @ whole.T
    assert_close(head_logits(classifier, few[0]), expected, atol=1e-4)


def test_new_classes_can_be_fitted(toy: CLIP, few: Few) -> None:
    features, labels = few
    changed = torch.where(labels == 3, 4, labels)
    first = ImageClassifier.zero_shot(toy, NAMES).fit(features, labels).add_classes(["black"])
    first.fit(features, changed, "gaussian", alpha=1)
    second = ImageClassifier.zero_shot(toy, [*NAMES, "black"])
    second.fit(features, changed, "gaussian", alpha=1)
    assert_close(head_logits(first, features), head_logits(second, features), atol=1e-3)
    assert first.provenance["counts"] == [7, 5, 5, 0, 5]


@pytest.mark.parametrize("method", REFUSED)
def test_a_scale_of_its_own_takes_no_new_classes(toy: CLIP, few: Few, method: str) -> None:
    classifier = fitted(toy, few, method)
    before = state_of(classifier)
    assert classifier.head.scale is None
    with pytest.raises(ConfigError, match=f"fitted by {method} has .* a scale of its own"):
        classifier.add_classes(["yellow"])
    assert state_of(classifier) == before


@pytest.mark.parametrize("method", ["anchored", "linear_probe"])
def test_words_about_a_head_steer_nothing(toy: CLIP, few: Few, method: str) -> None:
    classifier = fitted(toy, few, method)
    other = copy.deepcopy(classifier)
    other.provenance = {"method": "zero_shot", "scale": 1e6, "counts": [0] * 4}
    if method == "linear_probe":
        with pytest.raises(ConfigError, match="a scale of its own"):
            other.add_classes(["yellow"])
        return
    classifier.add_classes(["yellow"])
    other.add_classes(["yellow"])
    assert torch.equal(head_logits(other, few[0]), head_logits(classifier, few[0]))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["yellow", "white", "blue"], "classes of that name already: blue, white"),
        ({"white": "snow"}, "already: white"),
        ([], "class_names must be a non-empty list"),
        (["yellow", "yellow"], "more than once"),
    ],
)
def test_names_that_cannot_be_added_change_nothing(
    toy: CLIP, few: Few, names: Any, message: str
) -> None:
    classifier = fitted(toy, few, "anchored")
    before = state_of(classifier)
    with pytest.raises(ConfigError, match=message):
        classifier.add_classes(names)
    assert state_of(classifier) == before


# Templates


@pytest.mark.parametrize(
    ("templates", "prompts"),
    [
        ((), ["a photo of a yellow."]),
        ((["the {}", str.upper],), ["the yellow", "YELLOW"]),
        (("stl10",), ["a photo of a yellow.", "a photo of the yellow."]),
        ((None,), ["yellow"]),
        (({"blue": ["a {}"], "yellow": ["my {}"]},), ["my yellow"]),
    ],
)
def test_new_classes_get_the_templates_of_the_old(
    toy: CLIP, templates: Any, prompts: list[str]
) -> None:
    classifier = ImageClassifier.zero_shot(toy, ["blue"], *templates)
    own = classifier.templates
    classifier.add_classes(["yellow"])
    assert classifier.prompts[1] == prompts
    assert classifier.templates == own
    expected = zero_shot_weights(toy, {"yellow": prompts}, None)
    assert_close(classifier.zero_shot_head.weight[1:], expected)


def test_templates_for_other_labels_do_not_serve_new_ones(toy: CLIP) -> None:
    classifier = ImageClassifier.zero_shot(toy, ["blue"], {"blue": ["a {}"]})
    with pytest.raises(ConfigError, match=r"no list for \['yellow'\]"):
        classifier.add_classes(["yellow"])


def test_templates_that_are_passed_are_for_new_classes_only(toy: CLIP) -> None:
    classifier = ImageClassifier.zero_shot(toy, ["blue"], ["a {}"])
    classifier.add_classes(["yellow"], ["the {}"]).add_classes(["black"])
    assert classifier.prompts == [["a blue"], ["the yellow"], ["a black"]]


def test_unknown_templates_are_asked_for(classifier: ImageClassifier) -> None:
    classifier.templates = None
    before = state_of(classifier)
    with pytest.raises(ConfigError, match="does not know the templates .*: pass templates"):
        classifier.add_classes(["yellow"])
    assert state_of(classifier) == before
    assert classifier.add_classes(["yellow"], ["{}"]).prompts[-1] == ["yellow"]


# Heads


@pytest.mark.parametrize("kind", ["cosine", "linear", "prompts", "cache"])
def test_a_head_takes_zero_shot_classes(kind: str) -> None:
    random = torch.Generator().manual_seed(0)

    def rows(*shape: int) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(*shape, 8, generator=random), dim=-1)

    log_scale = torch.tensor(2.0)
    values = torch.eye(3)[torch.tensor([0, 1, 2, 0])]
    number = torch.tensor(1.5)
    head = {
        "cosine": CosineHead(rows(3), log_scale),
        "linear": LinearHead(rows(3), torch.tensor([1.0, 2.0, 3.0]), scale=5.0),
        "prompts": WeightedPromptHead(rows(3, 2), log_scale),
        "cache": CacheHead(rows(3), log_scale, rows(4), values, number, number),
    }[kind]
    features, new = rows(6), rows(2)
    scale = 5.0 if kind == "linear" else log_scale.exp().item()
    assert head.scale == pytest.approx(scale)
    for device_of in (new, new.half()):
        more = head.add_zero_shot(device_of)
        assert (more.classes, more.width) == (5, 8)
        assert more.scale == pytest.approx(scale)
        assert_close(more(features)[:, :3], head(features))
        assert_close(more(features)[:, 3:], scale * features @ new.T, atol=0.02)
    with pytest.raises(ConfigError, match="logits of a scale of its own"):
        LinearHead(rows(3)).add_zero_shot(new)
