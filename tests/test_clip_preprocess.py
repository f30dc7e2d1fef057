"""`model.preprocess` is a stored option: nothing resets it, it is no part, and it is saved."""

import copy
import json
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.transforms.v2 as transforms
from PIL import Image
from torch import Tensor, nn

import clipkit
from clipkit import CLIP, Preprocess
from clipkit.config import ResNetConfig
from clipkit.errors import ConfigError
from tests.helpers.models import make_small_tokenizer, random_clip

Function = Callable[[Any], Tensor]
PHOTO = Image.new("RGB", (90, 70), (200, 100, 50))


class Scale(nn.Module):
    """A module with a weight, as a learned preprocessing would have."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, image: Any) -> Tensor:
        side = self.factor.detach() * 24  # 48 pixels, as the model takes
        return torch.full((3, int(side), int(side)), 0.25)


def gray(image: Any) -> Tensor:
    return torch.full((3, 48, 48), 0.5)


COMPOSED = transforms.Compose(
    [
        transforms.PILToTensor(),
        transforms.ToDtype(torch.float32, scale=True),
        transforms.Resize((48, 48)),
    ]
)
FUNCTIONS: dict[str, Function] = {"function": gray, "module": Scale(), "torchvision": COMPOSED}


@pytest.fixture
def model(vit: CLIP) -> CLIP:
    return copy.deepcopy(vit)


@pytest.fixture(params=["data", *FUNCTIONS])
def preprocess(request: pytest.FixtureRequest, model: CLIP) -> Function:
    return FUNCTIONS.get(request.param) or variant(model, "backend")


def test_reading_the_tokenizer_resets_nothing(model: CLIP, preprocess: Function) -> None:
    named = random_clip(model.config, make_small_tokenizer())
    model = random_clip(replace(model.config, text=replace(model.config.text, vocab_size=49408)))
    for each in (named, model):
        each.preprocess = preprocess
        assert each.tokenizer is each.tokenizer
        assert each.preprocess is preprocess


def test_it_is_no_part_of_the_model(model: CLIP, preprocess: Function) -> None:
    before = list(model.state_dict()), list(model.modules()), list(model.named_parameters())
    model.preprocess = preprocess
    after = list(model.state_dict()), list(model.modules()), list(model.named_parameters())
    for one, other in zip(before, after, strict=True):
        assert len(one) == len(other)
    assert after[0] == before[0]
    model.double().train()
    assert model.preprocess is preprocess
    if isinstance(preprocess, Scale):
        assert preprocess.factor.dtype == torch.float32


def test_copies_keep_it(model: CLIP, preprocess: Function) -> None:
    model.preprocess = preprocess
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.optimize()]
    for twin in copies:
        assert type(twin.preprocess) is type(preprocess)
        assert torch.equal(twin.preprocess(PHOTO), preprocess(PHOTO))
    model.load_state_dict(model.state_dict())
    assert model.preprocess is preprocess


def test_images_are_embedded_with_it(model: CLIP, preprocess: Function) -> None:
    model.preprocess = preprocess
    found = model.embed_images([PHOTO])
    with torch.no_grad():
        expected = model.encode_image(preprocess(PHOTO)[None], normalize=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_it_can_be_set_again_and_again(model: CLIP) -> None:
    own = model.preprocess
    for value in (*FUNCTIONS.values(), own):
        model.preprocess = value
        assert model.preprocess is value


@pytest.mark.parametrize("value", [None, "squash", torch.zeros(3)])
def test_what_cannot_be_called_is_refused(model: CLIP, value: Any) -> None:
    own = model.preprocess
    with pytest.raises(ConfigError, match="preprocess is a Preprocess or a function of an image"):
        model.preprocess = value
    assert model.preprocess is own


# Saved with the model.


CHANGES: dict[str, dict[str, Any]] = {
    "mean": {"mean": (0.1, 0.2, 0.3)},
    "std": {"std": (0.1, 0.2, 0.3)},
    "interpolation": {"interpolation": "bicubic"},
    "resize mode": {"resize_mode": "shortest"},
}


def variant(model: CLIP, name: str) -> Preprocess:
    """Return the model's preprocessing with another backend, or with a change of its config."""
    own = model.preprocess
    assert isinstance(own, Preprocess)
    if name == "backend":
        return replace(own, backend="tensor")
    return replace(own, config=replace(own.config, **CHANGES[name]))


@pytest.mark.parametrize("name", ["backend", *CHANGES])
def test_data_come_back(model: CLIP, name: str, tmp_path: Path) -> None:
    chosen = model.preprocess = variant(model, name)
    model.save_pretrained(tmp_path)
    loaded, preprocess = clipkit.load(tmp_path, "cpu")
    assert loaded.preprocess == chosen
    assert preprocess is loaded.preprocess
    assert loaded.config == model.config
    again = CLIP.from_pretrained(tmp_path, device="cpu", resolution=64)
    assert isinstance(again.preprocess, Preprocess)
    assert again.preprocess == replace(chosen, resolution=(64, 64))


def test_a_model_with_its_own_says_nothing_more(model: CLIP, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    assert "preprocess" not in json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert CLIP.from_pretrained(tmp_path, device="cpu").preprocess == model.preprocess


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_functions_are_asked_for(model: CLIP, function: Function, tmp_path: Path) -> None:
    model.preprocess = function
    model.save_pretrained(tmp_path)
    told = re.escape(repr(function)[:40]) + "(.|\n)*: pass it as preprocess="
    with pytest.raises(ConfigError, match=told):
        clipkit.load(tmp_path, "cpu")
    with pytest.raises(ConfigError, match=told):
        CLIP.from_pretrained(tmp_path, device="cpu")
    loaded, preprocess = clipkit.load(tmp_path, "cpu", preprocess=gray)
    assert loaded.preprocess is preprocess is gray
    assert CLIP.from_pretrained(tmp_path, device="cpu", preprocess=gray).preprocess is gray


def test_what_is_passed_goes_before_what_was_saved(model: CLIP, tmp_path: Path) -> None:
    model.preprocess = variant(model, "backend")
    model.save_pretrained(tmp_path)
    assert CLIP.from_pretrained(tmp_path, device="cpu", preprocess=gray).preprocess is gray


@pytest.mark.parametrize("layout", ["open_clip", "transformers"])
@pytest.mark.parametrize("name", CHANGES)
def test_other_layouts_hold_data(model: CLIP, name: str, layout: Any, tmp_path: Path) -> None:
    model = random_clip(model.config, make_small_tokenizer())
    before = model.config
    model.preprocess = variant(model, name)
    model.save_pretrained(tmp_path, layout=layout)
    assert model.config == before
    loaded, preprocess = clipkit.load(tmp_path, "cpu")
    assert preprocess == model.preprocess
    assert isinstance(preprocess, Preprocess)
    assert loaded.config.preprocess == preprocess.config


@pytest.mark.parametrize("layout", ["open_clip", "transformers"])
@pytest.mark.parametrize("name", ["backend", *FUNCTIONS])
def test_other_layouts_refuse_the_rest(model: CLIP, name: str, layout: Any, tmp_path: Path) -> None:
    model = random_clip(model.config, make_small_tokenizer())
    model.preprocess = FUNCTIONS.get(name) or variant(model, "backend")
    with pytest.raises(ConfigError, match=f"the {layout} layout cannot hold"):
        model.save_pretrained(tmp_path / "model", layout=layout)
    assert not (tmp_path / "model").exists()


def test_transformers_refuses_a_resize_mode_that_it_does_not_know(
    model: CLIP, tmp_path: Path
) -> None:
    own = model.preprocess
    assert isinstance(own, Preprocess)
    model.preprocess = replace(own, config=replace(own.config, resize_mode="longest"))
    with pytest.raises(ConfigError, match="the transformers layout cannot hold .*'longest'"):
        model.save_pretrained(tmp_path, layout="transformers")


def test_the_embedded_model_keeps_its_own() -> None:
    model, preprocess = clipkit.load("tiny", "cpu")
    assert isinstance(model.config.vision, ResNetConfig)
    assert preprocess is model.preprocess
    assert preprocess == Preprocess(model.config.vision.resolution, model.config.preprocess)
