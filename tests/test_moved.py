"""Where OpenAI's package has a name that clipkit lacks, the error says what to use instead."""

import copy
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import clipkit
from clipkit.checkpoints.layouts import from_canonical
from clipkit.errors import ClipkitError, ConfigError, MovedNameError
from clipkit.moved import MODEL, MODULE, PACKAGE
from tests.helpers.towers import make_inputs, make_resnet, make_vit

clip_module: Any = __import__("clipkit.clip", fromlist=["CLIP"])


@pytest.fixture(scope="module")
def model() -> Any:
    return make_vit()


@pytest.mark.parametrize("name", MODEL)
def test_the_model_says_where_a_name_is(model: Any, name: str) -> None:
    with pytest.raises(AttributeError, match=re.escape(MODEL[name])) as caught:
        getattr(model, name)
    assert isinstance(caught.value, ClipkitError)
    assert "import clipkit.openai as clip" in str(caught.value)
    assert caught.value.name == name


@pytest.mark.parametrize("name", MODEL)
def test_nothing_can_be_put_where_nothing_would_look(model: Any, name: str) -> None:
    """A program that replaces its token embedding would otherwise go on with the old one."""
    with pytest.raises(MovedNameError, match=name):
        setattr(model, name, nn.Identity())
    with pytest.raises(MovedNameError, match=name):
        setattr(model, name, None)


def test_other_names_are_missed_as_in_any_module(model: Any) -> None:
    with pytest.raises(AttributeError, match="'CLIP' object has no attribute 'nonsense'"):
        _ = model.nonsense
    assert not hasattr(model, "transformer")
    assert getattr(model, "transformer", 3) == 3


def test_the_names_that_the_error_tells_of_exist(model: Any) -> None:
    for path in ("token_embedding", "positional_embedding", "ln_final", "text_projection"):
        assert hasattr(model.text, path)
    assert callable(model.text.tokens)
    assert callable(model.text.initialize)
    assert model.visual.input_resolution == 32


@pytest.mark.parametrize("name", PACKAGE)
def test_the_package_says_what_to_use(name: str) -> None:
    with pytest.raises(AttributeError, match=re.escape(PACKAGE[name])):
        getattr(clipkit, name)
    assert not hasattr(clipkit, name)


@pytest.mark.parametrize("name", MODULE)
def test_the_module_clip_says_what_to_use(name: str) -> None:
    with pytest.raises(AttributeError, match=re.escape(MODULE[name])):
        getattr(clip_module, name)


@pytest.mark.parametrize("module", [clipkit, clip_module], ids=["package", "module"])
def test_other_names_of_a_module_are_missed_as_in_any(module: Any) -> None:
    with pytest.raises(AttributeError, match=r"module 'clipkit(\.clip)?' has no attribute 'lod'"):
        _ = module.lod


def test_preprocess_has_no_list_of_transforms(model: Any) -> None:
    with pytest.raises(MovedNameError, match="'transforms'.*can be set to any Compose"):
        _ = model.preprocess.transforms
    assert not hasattr(model.preprocess, "transforms")


@pytest.mark.parametrize("part", ["transformer", "transformer.resblocks.0"])
@pytest.mark.parametrize("tower", ["visual", "text"])
def test_a_call_that_means_length_first_is_refused(model: Any, tower: str, part: str) -> None:
    """With (L, N, W) the samples of a batch would attend to each other."""
    module = getattr(model, tower).get_submodule(part)
    with pytest.raises(ConfigError, match=r'\(N, L, W\).*pass at="all"'):
        module(torch.ones(5, 2, 32))
    assert module(torch.ones(5, 2, 32), at="all").shape == (5, 2, 32)


def test_a_mask_is_refused_where_nothing_would_look_at_it(model: Any) -> None:
    block = model.text.transformer.resblocks[0]
    with pytest.raises(MovedNameError, match="no 'attn_mask'.*it attends to all tokens"):
        block.attn_mask = torch.zeros(16, 16)
    with pytest.raises(AttributeError, match="attn_mask"):
        _ = block.attn_mask


def test_attention_takes_no_queries_keys_and_values(model: Any) -> None:
    x = torch.ones(5, 2, 32)
    with pytest.raises(TypeError, match="positional argument"):
        model.visual.transformer.resblocks[0].attn(x, x, x)


def test_models_are_copied_and_pickled_as_before(model: Any) -> None:
    images = make_inputs("vit")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other.encode_image(images), model.encode_image(images))
        with pytest.raises(MovedNameError, match="transformer"):
            _ = other.transformer


def test_a_whole_model_compiles_into_one_graph() -> None:
    model: Any = make_resnet()
    images, tokens = make_inputs("resnet")[:2], make_inputs("text")[:3]
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images, tokens), model(images, tokens))


def test_a_program_that_takes_clipkit_for_openais_package_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its hooks would see another layout, which no check finds."""
    monkeypatch.setitem(sys.modules, "clip", clipkit)
    with pytest.warns(UserWarning, match=r"need clipkit\.openai\.install\(\)"):
        clipkit.load("tiny", "cpu")


def test_what_the_errors_say_can_be_done(tmp_path: Path) -> None:
    """Each remedy of the package, as it is written."""
    model: Any = make_vit()
    weights = from_canonical(model.state_dict(), "openai")
    model.load_state_dict(weights)
    weights = from_canonical(clipkit.load("tiny", "cpu")[0].state_dict(), "openai")
    torch.save(weights, tmp_path / "openai.pt")
    loaded, _ = clipkit.load(tmp_path / "openai.pt", "cpu", config="tiny")
    assert loaded.config.text.width == 96
    transform = clipkit.Preprocess((224, 224), clipkit.PreprocessConfig())
    assert transform(Image.new("RGB", (300, 250))).shape == (3, 224, 224)
    half, _ = clipkit.load("tiny", "cpu", dtype=torch.float16)
    assert half.dtype is torch.float16
    assert clipkit.available_models()
    assert clipkit.list_models()
    assert isinstance(loaded.tokenizer, clipkit.Tokenizer)
