"""A classifier is explained by one of its classes: the logit, in the direction of its weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from clipkit import CLIP, ImageClassifier
from clipkit.errors import ConfigError, DataError
from clipkit.inspect.explain import METHODS, Method, explain
from tests.helpers.models import make_small_tokenizer
from tests.helpers.random_weights import some_images
from tests.helpers.towers import make_resnet, make_vit

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
NAMES = ["cat", "dog", "red car"]
IMAGE = some_images(1, (96, 128))[0]
CASES: list[tuple[str, Method]] = [
    *(("vit", method) for method in METHODS if method not in ("grad_cam", "rise")),
    *(("resnet", method) for method in METHODS if method not in ("rollout", "rise")),
]


def make(name: str) -> CLIP:
    model = make_vit() if name == "vit" else make_resnet()
    model.tokenizer = make_small_tokenizer()
    return model


def fitted(name: str, method: str) -> ImageClassifier:
    classifier = ImageClassifier.zero_shot(make(name), NAMES)
    random = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(12, classifier.head.width, generator=random), dim=1)
    return classifier.fit(features, [place % 3 for place in range(12)], method)


@pytest.mark.parametrize(("name", "method"), CASES)
def test_a_class_is_the_direction_of_its_weights(name: str, method: Method) -> None:
    classifier = fitted(name, "anchored")
    weights = classifier.head.to_linear().weight.detach()
    found = explain(classifier, IMAGE, "dog", method).heat_map
    assert torch.equal(explain(classifier, IMAGE, 1, method).heat_map, found)
    other = explain(classifier, IMAGE, "cat", method).heat_map
    assert torch.equal(other, found) == (method in ("attention", "rollout"))
    if method != "relevance":
        expected = explain(classifier.model, IMAGE, weights[1], method).heat_map
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("name", "method"), CASES)
def test_zero_shot_is_explained_as_its_texts_are(name: str, method: Method) -> None:
    """By relevance too, whose products of layers depend on the scale of the logit."""
    classifier = ImageClassifier.zero_shot(make(name), NAMES)
    text = classifier.zero_shot_head.to_linear().weight.detach()[2]
    expected = explain(classifier.model, IMAGE, F.normalize(text, dim=0), method).heat_map
    found = explain(classifier, IMAGE, "red_car", method).heat_map
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["vit", "resnet"])
@pytest.mark.parametrize("method", ["cache", "anchored"])
def test_rise_explains_heads_of_every_kind(name: str, method: str) -> None:
    classifier = fitted(name, method)
    image = some_images(1, classifier.model.visual.resolution)[0]
    found = explain(classifier, image, "dog", "rise", masks=30)
    with torch.no_grad():
        expected = float(classifier(image[None])[0, 1])
    assert found.similarity == pytest.approx(expected, abs=1e-4)
    assert found.words is None
    assert found.heat_map.shape == image.shape[1:]
    other = explain(classifier, image, "cat", "rise", masks=30)
    assert not torch.equal(found.heat_map, other.heat_map)


def test_rise_weighs_masks_by_the_logit() -> None:
    """Twice the logits give twice the map, and another bias gives the same one."""
    classifier = fitted("vit", "anchored")
    first = explain(classifier, IMAGE, "dog", "rise", masks=30).heat_map
    head: Any = classifier.head
    with torch.no_grad():
        head.weight.mul_(2)
        head.bias.add_(3)
    second = explain(classifier, IMAGE, "dog", "rise", masks=30).heat_map
    torch.testing.assert_close(second, 2 * first, rtol=1e-3, atol=1e-4)


def test_heads_that_are_not_linear_are_told_with_what_can_explain_them() -> None:
    classifier = fitted("vit", "cache")
    for method in ("grad_eclip", "relevance", None):
        with pytest.raises(ConfigError, match="not linear in the features: pass method='rise', w"):
            explain(classifier, IMAGE, "dog", method)
    assert explain(classifier, IMAGE, "dog", "rollout").heat_map.shape == (6, 8)


@pytest.mark.parametrize(
    ("label", "error", "message"),
    [
        ("cow", DataError, "no class of this classifier is called 'cow'"),
        (3, DataError, "from 0 to 2, not from 3 to 3"),
        (True, ConfigError, "a name or an index, not by bool"),
        (torch.ones(16), ConfigError, "not by Tensor: a text or a feature goes with classifier.mo"),
        (["cat"], ConfigError, "a name or an index, not by list"),
    ],
)
def test_labels_that_are_no_class_are_refused(
    label: Any, error: type[Exception], message: str
) -> None:
    classifier = ImageClassifier.zero_shot(make("vit"), NAMES)
    with pytest.raises(error, match=message):
        explain(classifier, IMAGE, label)


def test_a_class_of_a_trained_model_is_found_among_photos() -> None:
    model = CLIP.from_pretrained("tiny", device="cpu")
    parts = [model.preprocess(PHOTOS / f"{name}.jpg") for name in ("cat", "coffee", "rocket")]
    names = ["cat", "cup of coffee", "rocket"]
    classifier = ImageClassifier.zero_shot(model, names)
    for place, name in enumerate(names):
        heat_map = explain(classifier, torch.cat(parts, dim=2), name).upsample()
        assert int(heat_map.view(96, 3, 96).sum(dim=(0, 2)).argmax()) == place
