"""clipkit.classify.classifier: devices, precisions and autocast; heads compute in float32."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit import CLIP, ImageClassifier
from clipkit.classify.few_shot import METHODS
from tests.helpers.toy_classifier import (
    EXTENDED,
    NAMES,
    assert_close,
    fitted,
    head_logits,
    state_of,
)

pytestmark = pytest.mark.usefixtures("quick_fits")

Few = tuple[Tensor, Tensor]

DTYPES = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_half_precision_models_have_float32_heads(
    toy: CLIP, color_folder: Path, dtype: torch.dtype, tmp_path: Path
) -> None:
    half = ImageClassifier.zero_shot(copy.deepcopy(toy).to(dtype), NAMES)
    features = half.embed(color_folder)
    assert features.dtype == torch.float32
    assert {value.dtype for value in half.head.state_dict().values()} == {torch.float32}
    assert_close(features.norm(dim=1), torch.ones(8))
    whole = ImageClassifier.zero_shot(toy, NAMES)
    assert_close(half.probabilities(color_folder), whole.probabilities(color_folder), atol=0.05)
    half.fit(color_folder, [i // 2 for i in range(8)]).add_classes(["black"])
    assert half.predict([*color_folder.rglob("*.png")])[0].probabilities.dtype == torch.float32
    half.save(tmp_path)
    loaded = ImageClassifier.load(tmp_path, device="cpu", dtype=dtype)
    assert state_of(loaded) == state_of(half)
    assert loaded.model.dtype == dtype
    assert torch.equal(loaded.probabilities(color_folder), half.probabilities(color_folder))


@pytest.mark.parametrize("method", ["zero_shot", *METHODS])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_a_classifier_can_be_cast(
    toy: CLIP, few: Few, images: Tensor, method: str, dtype: torch.dtype
) -> None:
    """The model's weights are rounded; heads stay as they are, and logits are float32."""
    whole = fitted(toy, few, method)
    cast = copy.deepcopy(whole).to(dtype)
    assert cast.model.dtype == dtype
    features, _ = few
    logits = head_logits(cast, features)
    assert logits.dtype == torch.float32
    expected = head_logits(whole, features)
    assert logits.equal(expected)
    assert cast(images).dtype == torch.float32
    assert cast.probabilities(features.to(dtype)).dtype == torch.float32
    if method in EXTENDED:
        assert cast.add_classes(["black"]).probabilities(features).shape == (22, 5)
    cast.fit(*few, strength=1.0)
    assert {value.dtype for value in cast.head.state_dict().values()} == {torch.float32}
    assert cast.probabilities(features).dtype == torch.float32


@pytest.mark.parametrize("method", ["zero_shot", *METHODS])
@pytest.mark.parametrize("dtype", DTYPES)
def test_autocast_leaves_heads_in_float32(
    toy: CLIP, few: Few, images: Tensor, method: str, dtype: torch.dtype
) -> None:
    classifier = fitted(toy, few, method)
    features, _ = few
    expected = head_logits(classifier, features)
    with torch.autocast("cpu", dtype):
        logits = head_logits(classifier, features)
        assert logits.dtype == torch.float32
        assert torch.equal(logits, expected)
        assert classifier(images).dtype == torch.float32


@pytest.mark.parametrize("method", METHODS)
def test_autocast_changes_no_fit(toy: CLIP, few: Few, method: str) -> None:
    """Prompts are encoded outside: autocast may do that in half precision."""
    classifier = ImageClassifier.zero_shot(toy, NAMES)
    again = ImageClassifier.zero_shot(toy, NAMES)
    classifier.fit(*few, method)
    with torch.autocast("cpu", torch.bfloat16):
        again.fit(*few, method)
    if method != "prompt_weights":
        assert state_of(again) == state_of(classifier)
    assert_close(again.probabilities(few[0]), classifier.probabilities(few[0]), atol=0.05)


@pytest.mark.parametrize("dtype", DTYPES)
def test_autocast_leaves_gradients_of_heads_in_float32(
    classifier: ImageClassifier, few: Few, dtype: torch.dtype
) -> None:
    features, labels = few
    gradients: list[Tensor] = []
    for enabled in (False, True):
        head = copy.deepcopy(classifier.head)
        with torch.autocast("cpu", dtype, enabled=enabled):
            loss = F.cross_entropy(head(features), labels)
        loss.backward()
        gradient = head.get_parameter("weight").grad
        assert gradient is not None
        gradients.append(gradient)
    assert torch.equal(*gradients)


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["zero_shot", *METHODS])
def test_cuda_says_the_same(
    toy: CLIP, few: Few, color_folder: Path, method: str, tmp_path: Path
) -> None:
    here = fitted(toy, few, method)
    there = fitted(copy.deepcopy(toy).cuda(), few, method)
    for each in (here, there):
        if method in EXTENDED:
            each.add_classes(["yellow", "black"], ["the {}", "{}"])
    assert {value.device.type for value in there.state_dict().values()} == {"cuda"}
    assert there.probabilities(few[0]).device.type == "cpu"
    files = [*color_folder.rglob("*.png")]
    assert there.predict(files)[0].probabilities.device.type == "cpu"
    assert_close(there.probabilities(few[0]), here.probabilities(few[0]), atol=5e-3)
    there.save(tmp_path)
    for device in ("cpu", "cuda"):
        loaded = ImageClassifier.load(tmp_path, device=device, dtype=torch.float32)
        assert {value.device.type for value in loaded.state_dict().values()} == {device}
        assert_close(loaded.probabilities(few[0]), there.probabilities(few[0]), atol=1e-4)
