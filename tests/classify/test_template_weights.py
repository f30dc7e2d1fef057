"""Weights of templates from images without labels: against float64, and who gets the weight."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

import clipkit
from clipkit import CLIP, ImageClassifier
from clipkit.classify import template_weights
from clipkit.classify.template_weights import score_templates
from clipkit.classify.zero_shot import embed_prompts
from clipkit.errors import ConfigError, DataError
from tests.helpers.toy_classifier import RAGGED, state_of

Array = NDArray[np.float64]
TEMPLATES = ["a {}.", "the {}", "{} on white"]


def unit(*shape: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=random), dim=-1)


def scores_by_hand(
    images: Array, texts: Array, scale: float, reference: Array | None = None
) -> Array:
    """Return the scores as the paper has them: logits, less their means, largest class, mean."""
    scores: list[float] = []
    for own in texts:
        logits = scale * images @ own.T  # (N, C)
        expected = logits.mean(axis=0)
        if reference is not None:
            expected = (expected + (scale * reference @ own.T).mean(axis=0)) / 2
        scores.append(float((logits - expected).max(axis=1).mean()))
    return np.array(scores)


@pytest.mark.parametrize("with_reference", [True, False])
def test_scores_are_those_of_the_paper(with_reference: bool) -> None:
    images, texts = unit(40, 8, seed=0), unit(5, 6, 8, seed=1)
    reference = unit(30, 8, seed=2) if with_reference else None
    found = score_templates(images, texts, torch.tensor(30.0), reference)
    exact = None if reference is None else reference.double().numpy()
    expected = scores_by_hand(images.double().numpy(), texts.double().numpy(), 30.0, exact)
    assert np.abs(found.double().numpy() - expected).max() < 1e-4
    assert expected.std() > 0.05


def test_the_head_is_the_weighted_mean_of_the_templates(toy: CLIP) -> None:
    """Classes with several names have the mean of their names in each template."""
    classifier = ImageClassifier.zero_shot(toy, RAGGED, TEMPLATES)
    images = unit(20, 32, seed=3)
    weighed = clipkit.weigh_templates(classifier, images)
    texts = torch.stack(
        [clipkit.zero_shot_weights(toy, RAGGED, [template]) for template in TEMPLATES]
    )
    exact: Array = texts.double().numpy()
    scale = float(np.exp(toy.logit_scale.item()))
    scores = scores_by_hand(images.double().numpy(), exact, scale)
    weights = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    found = np.array(weighed.provenance["template_weights"])
    assert np.abs(found - weights).max() < 1e-5
    mean = np.einsum("p,pcd->cd", weights, exact)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    for head in (weighed.head, weighed.zero_shot_head):
        rows = head.to_linear().weight.detach().double().numpy() / scale
        assert np.abs(rows - mean).max() < 1e-5


def test_a_template_that_tells_classes_apart_gets_the_weight() -> None:
    """One that likes all images alike, however much, gets none."""
    classes = unit(4, 16, seed=4)
    images = F.normalize(classes[torch.arange(80) % 4] + 0.1 * unit(80, 16, seed=5), dim=-1)
    flattering = F.normalize(images.mean(dim=0) + 0.01 * classes, dim=-1)
    weights = score_templates(images, torch.stack([classes, flattering]), torch.tensor(50.0))
    assert weights.softmax(dim=0)[0] > 0.99


def test_what_comes_out_is_a_zero_shot_classifier(toy: CLIP, few: Any, tmp_path: Any) -> None:
    classifier = ImageClassifier.zero_shot(toy, RAGGED, TEMPLATES)
    before = state_of(classifier)
    images = unit(20, 32, seed=3)
    weighed = clipkit.weigh_templates(classifier, images, reference=unit(9, 32, seed=6))
    assert state_of(classifier) == before
    weighed.save(tmp_path)
    loaded = ImageClassifier.load(tmp_path, device="cpu")
    assert loaded.provenance == weighed.provenance
    assert torch.equal(loaded.probabilities(images), weighed.probabilities(images))
    plain = clipkit.weigh_templates(classifier, images)
    assert plain.provenance != weighed.provenance
    assert weighed.fit(*few).provenance["method"] == "anchored"


@pytest.mark.parametrize("templates", [["a {}."], None, {name: TEMPLATES for name in RAGGED}])
def test_templates_must_be_shared_and_several(toy: CLIP, templates: Any) -> None:
    classifier = ImageClassifier.zero_shot(toy, RAGGED, templates)
    with pytest.raises(ConfigError, match="needs templates that all classes share, two at least"):
        clipkit.weigh_templates(classifier, unit(3, 32, seed=0))


def test_swapped_arguments_are_told(toy: CLIP) -> None:
    classifier: Any = ImageClassifier.zero_shot(toy, ["cat", "dog"], ["a {}", "one {}"])
    with pytest.raises(ConfigError, match=r"not \['a.png'\] first: weigh_templates\(classifier"):
        clipkit.weigh_templates(["a.png"], classifier)  # type: ignore[arg-type]


def test_a_fit_is_not_thrown_away(toy: CLIP, few: Any) -> None:
    classifier = ImageClassifier.zero_shot(toy, RAGGED, TEMPLATES).fit(*few)
    with pytest.raises(ConfigError, match="this one is anchored: weigh first"):
        clipkit.weigh_templates(classifier, unit(3, 32, seed=0))
    adapted, _ = ImageClassifier.zero_shot(toy, RAGGED, TEMPLATES).adapt(unit(8, 32, seed=0))
    with pytest.raises(ConfigError, match="weigh first"):
        clipkit.weigh_templates(adapted, unit(3, 32, seed=0))


def test_features_must_be_of_unit_length(toy: CLIP) -> None:
    classifier = ImageClassifier.zero_shot(toy, RAGGED, TEMPLATES)
    with pytest.raises(DataError, match="unit length"):
        clipkit.weigh_templates(classifier, 2 * unit(3, 32, seed=0))


def test_no_images_weigh_nothing(toy: CLIP) -> None:
    """They made a classifier of NaN."""
    classifier = ImageClassifier.zero_shot(toy, RAGGED, TEMPLATES)
    with pytest.raises(DataError, match="no image to weigh templates by: pass one"):
        clipkit.weigh_templates(classifier, torch.empty(0, 32))
    with pytest.raises(DataError, match="no image to weigh templates by: pass one"):
        clipkit.weigh_templates(classifier, unit(3, 32, seed=0), reference=torch.empty(0, 32))


def test_autocast_changes_no_weight(toy: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may change how the tower encodes the texts, so these are encoded before."""
    classifier = ImageClassifier.zero_shot(toy, RAGGED, TEMPLATES)
    images = unit(20, 32, seed=3)
    texts = embed_prompts(toy, classifier.prompts)

    def encoded(model: CLIP, prompts: list[list[str]]) -> Tensor:
        return texts

    monkeypatch.setattr(template_weights, "embed_prompts", encoded)
    expected = state_of(clipkit.weigh_templates(classifier, images))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = state_of(clipkit.weigh_templates(classifier, images))
    assert found == expected


def test_classes_of_other_templates_are_refused(toy: CLIP) -> None:
    """Their prompts took the weights of templates that they were not made by."""
    images = unit(20, 32, seed=3)
    classifier = ImageClassifier.zero_shot(toy, RAGGED, TEMPLATES)
    classifier.add_classes(["black"]).add_classes({"pink": ["pink", "rose"]})
    assert len(clipkit.weigh_templates(classifier, images).labels) == 6
    others = [["a {}.", "the {}", "{} on black"], ["the {}", "a {}.", "{} on white"], ["{}"] * 3]
    for templates in others:
        classifier = ImageClassifier.zero_shot(toy, RAGGED, TEMPLATES)
        classifier.add_classes(["black"], templates)
        with pytest.raises(ConfigError, match="prompts of 'black' are of others .*: add its class"):
            clipkit.weigh_templates(classifier, images)
    functions = [lambda name: f"a {name}.", lambda name: f"the {name}"]
    made = ImageClassifier.zero_shot(toy, {"blue": "sky", "red": "wine"}, functions)
    assert clipkit.weigh_templates(made, images).labels == ["blue", "red"]


def test_a_calibration_is_not_lost_in_silence(
    toy: CLIP, few: Any, caplog: pytest.LogCaptureFixture
) -> None:
    classifier = ImageClassifier.zero_shot(toy, RAGGED, TEMPLATES)
    clipkit.weigh_templates(classifier, few[0])
    assert "calibration" not in caplog.text
    weighed = clipkit.weigh_templates(classifier.calibrate(*few), few[0])
    assert weighed.calibration is None
    assert "templates were weighed, so the calibration is not kept" in caplog.text
