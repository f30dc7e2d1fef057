"""What explains leaves the model alone, takes any image, and refuses what it cannot do."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from clipkit import CLIP, lora, merge_lora
from clipkit.errors import ConfigError, ImageError, TokenizerError
from clipkit.inspect.explain import METHODS, Method, explain
from clipkit.inspect.explanation import Explanation
from tests.helpers.models import make_small_tokenizer
from tests.helpers.random_weights import some_images
from tests.helpers.towers import make_resnet, make_vit

ROOT = Path(__file__).parents[2]
TEXT = "a cat on a mat"
VIT_METHODS: list[Method] = [method for method in METHODS if method != "grad_cam"]
RESNET_METHODS: list[Method] = [method for method in METHODS if method != "rollout"]
CASES: list[tuple[str, Method]] = [
    *(("vit", method) for method in VIT_METHODS),
    *(("resnet", method) for method in RESNET_METHODS),
]


def make(name: str) -> CLIP:
    model = make_vit() if name == "vit" else make_resnet()
    model.tokenizer = make_small_tokenizer()
    return model


def an_image(size: tuple[int, int] = (64, 64)) -> Tensor:
    return some_images(1, size)[0]


def run(model: CLIP, method: Method | None, image: Any = None, text: Any = TEXT) -> Explanation:
    image = an_image() if image is None else image
    masks = 20 if method == "rise" else None
    return explain(model, image, text, method, masks=masks)


def assert_equal(found: Explanation, expected: Explanation) -> None:
    assert torch.equal(found.heat_map, expected.heat_map)
    assert found.similarity == expected.similarity
    assert found.tokens == expected.tokens
    if expected.token_values is not None:
        assert found.token_values is not None
        assert torch.equal(found.token_values, expected.token_values)


@pytest.mark.parametrize(("name", "method"), CASES)
def test_each_method_gives_a_map_of_any_size(name: str, method: Method) -> None:
    model = make(name)
    found = run(model, method, an_image((64, 96)))
    grid = (4, 6) if name == "vit" else (2, 3)
    assert found.heat_map.shape == ((64, 96) if method == "rise" else grid)
    assert found.heat_map.dtype == torch.float32
    assert found.heat_map.max() > 0
    assert found.heat_map.isfinite().all()
    assert method == "rise" or found.heat_map.min() >= 0
    assert found.method == method
    assert (found.tokens is None) == (method in ("attention", "rollout", "rise"))
    assert (found.words is None) == (found.tokens is None)


@pytest.mark.parametrize(("name", "method"), CASES)
def test_the_model_and_the_callers_modes_make_no_difference(name: str, method: Method) -> None:
    expected = run(make(name), method)
    model = make(name).train()
    for parameter in model.visual.parameters():
        parameter.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        assert_equal(run(model, method), expected)
    with torch.inference_mode():
        assert_equal(run(model, method, an_image()), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_equal(run(model, method), expected)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.visual.parameters())
    assert all(parameter.requires_grad for parameter in model.text.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_defaults_are_grad_eclip_and_grad_cam() -> None:
    assert run(make("vit"), None).method == "grad_eclip"
    assert run(make("resnet"), None).method == "grad_cam"


def test_the_similarity_is_the_cosine_of_the_features() -> None:
    for model in (make("vit"), make("resnet")):
        image = an_image(model.config.vision.resolution)
        with torch.no_grad():
            expected = (
                model.encode_image(image[None], normalize=True)
                @ model.encode_text(model.tokenizer([TEXT]), normalize=True).T
            )
        assert run(model, None, image).similarity == pytest.approx(float(expected), abs=1e-6)


def test_another_text_gets_another_map_but_for_attention() -> None:
    for name, method in CASES:
        model = make(name)
        first, second = run(model, method), run(model, method, text="dogs in fog")
        is_blind = method in ("attention", "rollout")
        assert torch.equal(first.heat_map, second.heat_map) == is_blind, method


def test_images_come_as_files_and_prepared(tmp_path: Path) -> None:
    model = make("vit")
    array = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    path = tmp_path / "image.png"
    Image.fromarray(array).save(path)
    expected = explain(model, path, TEXT)
    with Image.open(path) as file:
        seen = np.asarray(file.resize((40, 32), Image.Resampling.BICUBIC))[:, 4:36]
    assert expected.pixels.shape == (32, 32, 3)
    assert np.array_equal(expected.pixels, seen)
    prepared = model.preprocess(path)
    for image in (array, Image.fromarray(array), str(path), prepared, prepared[None].double()):
        assert_equal(explain(model, image, TEXT), expected)


def test_features_stand_in_the_place_of_a_text() -> None:
    model = make("vit")
    with torch.no_grad():
        features = model.encode_text(model.tokenizer([TEXT]))[0]
    for method in VIT_METHODS:
        expected, found = run(model, method), run(model, method, text=3 * features)
        torch.testing.assert_close(found.heat_map, expected.heat_map, rtol=1e-4, atol=1e-6)
        assert found.tokens is None
        assert found.words is None
        assert found.token_values is None


def test_words_are_put_together_from_tokens() -> None:
    found = run(make("vit"), "grad_eclip")
    assert found.tokens is not None
    assert found.token_values is not None
    assert found.words is not None
    assert [word for word, _ in found.words] == TEXT.split()
    assert len(found.tokens) == len(found.token_values) > len(found.words)
    assert sum(value for _, value in found.words) == pytest.approx(float(found.token_values.sum()))
    empty = run(make("vit"), "relevance", text="")
    assert empty.words == []


def test_a_map_is_enlarged_over_what_the_tower_saw() -> None:
    heat_map = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    found = Explanation("attention", 0.5, heat_map, np.zeros((40, 36, 3), np.uint8), (32, 32))
    full = found.upsample()
    assert full.shape == (40, 36)
    assert full[:32, :8].abs().max() == 0
    assert full[:32, 24:32].min() == 1
    assert full[:32, 32:].abs().max() == 0
    assert full[32:].abs().max() == 0
    torch.testing.assert_close(full[0, 15:17], torch.tensor([0.46875, 0.53125]))
    assert found.upsample((80, 72)).shape == (80, 72)
    assert run(make("resnet"), "grad_cam", an_image((63, 95))).upsample().shape == (63, 95)
    assert repr(found) == "Explanation(attention, similarity=0.5000, heat_map: 2 x 2, tokens: none)"
    wrong: Any = (80, 0)
    with pytest.raises(ConfigError, match=r"two positive integers, not \(80, 0\)"):
        found.upsample(wrong)


def test_half_precision_gives_nearly_the_same_map() -> None:
    for name in ("vit", "resnet"):
        expected, found = run(make(name), None), run(make(name).bfloat16(), None)
        difference = (found.heat_map - expected.heat_map).abs().max()
        assert difference < 0.1 * expected.heat_map.max()


def test_copies_from_optimize_can_be_masked() -> None:
    model = make("resnet")
    fast, expected = model.optimize(), run(model, "rise")
    torch.testing.assert_close(run(fast, "rise").heat_map, expected.heat_map, rtol=0, atol=1e-5)


def test_rise_shows_its_progress_if_asked(capsys: pytest.CaptureFixture[str]) -> None:
    model = make("resnet")
    expected = explain(model, an_image(), TEXT, "rise", masks=40)
    assert capsys.readouterr().err == ""
    found = explain(model, an_image(), TEXT, "rise", masks=40, progress=True)
    assert "40/40" in capsys.readouterr().err
    assert_equal(found, expected)


def test_methods_that_are_not_there() -> None:
    wrong: Any = "saliency"
    with pytest.raises(ConfigError, match="no method 'saliency': pass one of grad_eclip, grad_cam"):
        run(make("vit"), wrong)
    with pytest.raises(ConfigError, match="rollout follows attention from layer to layer"):
        run(make("resnet"), "rollout")
    with pytest.raises(ConfigError, match="grad_cam needs the maps of a ResNet"):
        run(make("vit"), "grad_cam")


def test_options_that_would_be_ignored_or_are_impossible() -> None:
    model, image = make("vit"), an_image()
    with pytest.raises(ConfigError, match="masks=5 is of method 'rise', and 'grad_eclip' draws no"):
        explain(model, image, TEXT, masks=5)
    with pytest.raises(ConfigError, match="seed=0 is of method 'rise'"):
        explain(model, image, TEXT, "rollout", seed=0)
    with pytest.raises(ConfigError, match="progress=True is of method 'rise', and 'rollout' is"):
        explain(model, image, TEXT, "rollout", progress=True)
    with pytest.raises(ConfigError, match="masks must be an integer of at least 1, not 0"):
        explain(model, image, TEXT, "rise", masks=0)
    with pytest.raises(ConfigError, match="seed must be an integer of at least 0, not -1"):
        explain(model, image, TEXT, "rise", seed=-1)


def test_images_and_texts_that_cannot_be_used() -> None:
    model, image = make("vit"), an_image()
    many: Any = ["a cat", "a dog"]
    with pytest.raises(ConfigError, match=r"one text or one feature \(D,\), not list"):
        explain(model, image, many)
    with pytest.raises(ConfigError, match=r"of shape \(D,\), not torch.float32 of \(1, 16\)"):
        explain(model, image, torch.zeros(1, 16))
    with pytest.raises(ConfigError, match=r"of width 8 cannot .* pass one of shape \(16,\)"):
        explain(model, image, torch.ones(8))
    feature = torch.ones(16)
    feature[3] = torch.nan
    with pytest.raises(ConfigError, match="1 of the 16 numbers of the feature are NaN or infinite"):
        explain(model, image, feature)
    with pytest.raises(ImageError, match="there are NaN or infinite ones in the image"):
        explain(model, image / 0, TEXT)
    with pytest.raises(TokenizerError, match="context"):
        explain(model, image, "cat " * 50)
    with pytest.raises(ImageError, match="one image at a time, not 2"):
        explain(model, some_images(2, 32), TEXT)
    with pytest.raises(ImageError, match="smaller than a patch"):
        explain(model, an_image((8, 32)), TEXT)
    with pytest.raises(ImageError, match="nowhere"):
        explain(model, "nowhere.jpg", TEXT)
    wrong: Any = torch.nn.Linear(1, 1)
    with pytest.raises(ConfigError, match=r"explain looks into a clipkit\.CLIP, not a Linear"):
        explain(wrong, image, TEXT)


def three_photos(model: CLIP) -> Tensor:
    """Return a cat, a cup of coffee and a rocket side by side, (3, 96, 288)."""
    photos = ROOT / "examples" / "photos"
    parts = [model.preprocess(photos / f"{name}.jpg") for name in ("cat", "coffee", "rocket")]
    return torch.cat(parts, dim=2)


@pytest.mark.parametrize("method", ["grad_cam", "grad_eclip", "relevance"])
def test_maps_of_a_trained_model_show_what_the_text_names(method: Method) -> None:
    model = CLIP.from_pretrained("tiny", device="cpu")
    image = three_photos(model)
    texts = ("a photo of a cat", "a cup of coffee", "a rocket in the sky")
    for place, text in enumerate(texts):
        found = explain(model, image, text, method)
        shares = found.upsample().view(96, 3, 96).sum(dim=(0, 2))
        assert int(shares.argmax()) == place, text
        assert int(found.upsample().amax(dim=0).argmax()) // 96 == place, text


@pytest.mark.parametrize("method", ["grad_eclip", "relevance"])
def test_words_of_a_trained_model_name_what_the_image_shows(method: Method) -> None:
    model = CLIP.from_pretrained("tiny", device="cpu")
    texts = {"cat": "a photo of a cat", "coffee": "a cup of tea", "rocket": "a rocket in the sky"}
    for name, word in zip(texts, ("cat", "cup", "rocket"), strict=True):
        photo = ROOT / "examples" / "photos" / f"{name}.jpg"
        words = explain(model, photo, texts[name], method).words
        assert words is not None
        assert max(words, key=lambda pair: pair[1])[0] == word


def test_low_rank_changes_are_explained_as_if_merged() -> None:
    model = lora(make("vit"), rank=2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and ".change" in name:
                parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    merged = merge_lora(model)
    for method in ("grad_eclip", "relevance", "rollout"):
        found, expected = run(model, method), run(merged, method)
        plain = run(make("vit"), method)
        torch.testing.assert_close(found.heat_map, expected.heat_map, rtol=1e-3, atol=1e-5)
        assert not torch.allclose(found.heat_map, plain.heat_map, rtol=1e-2)


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_copies_from_optimize_show_the_same_attention(name: str) -> None:
    model = make(name)
    fast, image = model.optimize(), an_image()
    found = run(fast, "attention", image)
    torch.testing.assert_close(found.heat_map, run(model, "attention", image).heat_map)
    if any("packed" in done for done in fast.optimizations):  # which depends on the processor
        with pytest.raises(ConfigError, match=r"a model from optimize\(\) has no gradients"):
            run(fast, "grad_eclip", image)
