"""clipkit.classify.classifier: what it is made of, and what it says of itself."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import clipkit
from clipkit import CLIP, ImageClassifier, zero_shot_weights
from clipkit.classify.heads import CosineHead, LinearHead
from clipkit.errors import ConfigError
from clipkit.prompts import WHOLE_PROMPTS, prompt_set, render
from tests.conftest import random_clip
from tests.helpers.toy_classifier import NAMES, RAGGED, assert_close, zero_shot_by_hand

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"


@pytest.mark.parametrize(
    ("names", "templates"),
    [
        (NAMES, ()),
        (RAGGED, (["a {}.", "{}"],)),
        (["ship", "cat"], ("STL-10",)),
        (NAMES, ({name: ["{}"] for name in NAMES},)),
        (["one ship", "two cats"], (None,)),
    ],
)
def test_zero_shot_is_the_model_and_its_weights(
    toy: CLIP, images: Tensor, names: Any, templates: Any
) -> None:
    classifier = ImageClassifier.zero_shot(toy, names, *templates)
    weights = zero_shot_weights(toy, names, *templates)
    assert_close(classifier(images), zero_shot_by_hand(toy, images, weights))
    assert (classifier.labels, classifier.prompts) == render(names, *templates)
    assert classifier.model is toy
    assert classifier.provenance == {"method": "zero_shot"}
    assert not classifier.training
    assert classifier(images).dtype == torch.float32


def test_a_set_brings_its_templates(toy: CLIP) -> None:
    classifier = ImageClassifier.zero_shot(toy, ["ship"], "stl10")
    templates = prompt_set("stl10").templates
    assert classifier.prompts == [[template.replace("{}", "ship") for template in templates]]
    assert len(classifier.prompts[0]) == 2
    assert classifier.templates == templates


def test_whole_prompts_are_templates_too(toy: CLIP) -> None:
    classifier = ImageClassifier.zero_shot(toy, ["a {curly} ship"], None)
    assert classifier.prompts == [["a {curly} ship"]]
    assert classifier.templates == WHOLE_PROMPTS


def test_the_path_of_a_model_is_enough(toy: CLIP, tmp_path: Path) -> None:
    toy.save_pretrained(tmp_path / "mine")
    classifier = ImageClassifier.zero_shot(tmp_path / "mine", ["red", "blue"])
    assert classifier.labels == ["red", "blue"]


def test_the_name_of_a_model_is_enough() -> None:
    names = ["cat", "rocket", "cup of coffee"]
    classifier = ImageClassifier.zero_shot("tiny", names)
    prediction = classifier.predict(PHOTOS / "coffee.jpg")
    assert prediction.label == "cup of coffee"
    model, preprocess = clipkit.load("tiny", classifier.model.device)
    tokens = clipkit.tokenize([f"a photo of a {name}." for name in names])
    with torch.no_grad():
        logits, _ = model(preprocess(PHOTOS / "coffee.jpg").unsqueeze(0), tokens)
    assert_close(prediction.probabilities, logits.softmax(dim=-1)[0].cpu())


def test_forward_can_be_differentiated(classifier: ImageClassifier, images: Tensor) -> None:
    classifier = copy.deepcopy(classifier)
    F.cross_entropy(classifier(images), torch.tensor([0, 1, 2])).backward()
    given = {
        name
        for name, parameter in classifier.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }
    assert given >= {
        "head.weight",
        "head.logit_scale",
        "model.visual.conv1.weight",
        "model.visual.proj",
    }
    assert not {name for name in given if name.startswith(("model.text", "zero_shot_head"))}


@pytest.mark.parametrize("shorter", ["labels", "prompts", "head", "zero_shot_head"])
def test_parts_that_do_not_fit_are_refused(classifier: ImageClassifier, shorter: str) -> None:
    names = ("labels", "prompts", "head", "zero_shot_head")
    parts = {name: getattr(classifier, name) for name in names}
    if "head" in shorter:
        parts[shorter] = CosineHead(torch.eye(3, 32), torch.tensor(1.0))
    else:
        parts[shorter] = parts[shorter][:3]
    message = r"as many labels \([34]\) and prompts \([34]\) as its heads"
    with pytest.raises(ConfigError, match=message):
        ImageClassifier(classifier.model, **parts)


def test_a_head_of_another_width_is_refused(classifier: ImageClassifier) -> None:
    with pytest.raises(ConfigError, match="width 32 need heads of that width, not 31"):
        ImageClassifier(
            classifier.model,
            LinearHead(torch.ones(4, 31)),
            classifier.labels,
            classifier.zero_shot_head,
            classifier.prompts,
        )


def test_it_says_what_it_is(
    toy: CLIP, few: tuple[Tensor, Tensor], resnet_config: clipkit.CLIPConfig
) -> None:
    one = ImageClassifier.zero_shot(toy, ["blue"])
    assert repr(one) == "ImageClassifier(1 class: blue; zero shot; ViT 32 px)"
    classifier = ImageClassifier.zero_shot(toy, NAMES).fit(*few)
    assert repr(classifier) == (
        "ImageClassifier(4 classes: blue, dark red, green, ...; anchored on 22 images; ViT 32 px)"
    )
    head = CosineHead(torch.eye(3, 32), torch.tensor(1.0))
    labels = ["a", "b", "c"]
    resnet = ImageClassifier(random_clip(resnet_config), head, labels, head, [["x"]] * 3)
    assert repr(resnet) == "ImageClassifier(3 classes: a, b, c; zero shot; ResNet 64 px)"
