"""`load_state_dict` takes the weights of a CLIP in every layout that `load` reads."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipkit import CLIP
from clipkit.checkpoints.layouts import from_canonical
from clipkit.errors import ConfigError, StateDictMismatchError
from tests.helpers.towers import make_inputs, make_resnet, make_vit

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def source() -> CLIP:
    return make_vit()


def other_weights(model: CLIP) -> CLIP:
    """Return a copy with other weights."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(0.5)
    return other


def in_layout(model: CLIP, layout: str) -> State:
    """Return the weights of a model in a layout, as programs hold them."""
    weights = model.state_dict()
    match layout:
        case "openai" | "transformers":
            return from_canonical(weights, layout)  # pyright: ignore[reportArgumentType]
        case "openai's archive":
            sizes = {"input_resolution": 32, "context_length": 16, "vocab_size": 600}
            extra = {name: torch.tensor(size) for name, size in sizes.items()}
            return from_canonical(weights, "openai") | extra
        case "open_clip":
            return from_canonical(weights, "openai") | {"attn_mask": torch.zeros(16, 16)}
        case "module.":
            return {f"module.{name}": value for name, value in weights.items()}
        case "module. of openai":
            openai = from_canonical(weights, "openai")
            return {f"module.{name}": value for name, value in openai.items()}
        case "_orig_mod.":
            return {f"_orig_mod.{name}": value for name, value in weights.items()}
        case "canonical":
            return weights
        case _:
            raise ValueError(layout)


LAYOUTS = [
    "openai",
    "openai's archive",
    "open_clip",
    "transformers",
    "module.",
    "module. of openai",
    "_orig_mod.",
    "canonical",
]


def assert_same_weights(found: nn.Module, expected: nn.Module) -> None:
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_taken(source: CLIP, layout: str) -> None:
    model = other_weights(source)
    state = in_layout(source, layout)
    names = list(state)
    result = model.load_state_dict(state)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert_same_weights(model, source)
    assert list(state) == names  # the caller's dict is as it was


@pytest.mark.parametrize("layout", ["openai", "module.", "canonical"])
def test_a_resnet_is_taken_with_its_statistics(layout: str) -> None:
    source = make_resnet()
    model = other_weights(source)
    model.load_state_dict(in_layout(source, layout))
    assert_same_weights(model, source)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_inside_another_module_is_taken_too(source: CLIP, layout: str) -> None:
    clip, head = other_weights(source), nn.Linear(16, 3)
    outer = nn.ModuleDict({"clip": clip, "head": head})
    state = {f"clip.{name}": value for name, value in in_layout(source, layout).items()}
    state |= {"head.weight": torch.ones(3, 16), "head.bias": torch.ones(3)}
    outer.load_state_dict(state)
    assert_same_weights(clip, source)
    assert torch.equal(head.bias, torch.ones(3))


def test_a_compiled_and_a_copied_model_take_every_layout(source: CLIP) -> None:
    model = copy.deepcopy(other_weights(source))
    compiled: Any = torch.compile(model)
    openai = in_layout(source, "openai")
    compiled.load_state_dict({f"_orig_mod.{name}": value for name, value in openai.items()})
    assert_same_weights(model, source)


def test_weights_may_be_assigned(source: CLIP) -> None:
    model = other_weights(source)
    state = in_layout(source, "openai")
    model.load_state_dict(state, assign=True)
    assert model.text.text_projection is not None
    assert model.text.text_projection.data_ptr() == state["text_projection"].data_ptr()
    assert torch.equal(model(*inputs())[0], source(*inputs())[0])


def inputs() -> tuple[Tensor, Tensor]:
    return make_inputs("vit"), make_inputs("text")


def test_a_part_of_the_weights_needs_strict_false(source: CLIP) -> None:
    model = other_weights(source)
    part = {name: value for name, value in source.state_dict().items() if "visual" in name}
    with pytest.raises(RuntimeError, match="Missing key.*text.positional_embedding"):
        model.load_state_dict(part)
    result = model.load_state_dict(part, strict=False)
    assert result.unexpected_keys == []
    assert_same_weights(model.visual, source.visual)


def test_what_is_no_clip_is_reported_by_its_own_names(source: CLIP) -> None:
    model = other_weights(source)
    with pytest.raises(RuntimeError, match='Unexpected key.*"layer1.weight"'):
        model.load_state_dict({"layer1.weight": torch.ones(2)})


def test_a_weight_too_many_is_reported(source: CLIP) -> None:
    model = other_weights(source)
    state = in_layout(source, "openai") | {"visual.extra": torch.ones(2)}
    with pytest.raises(RuntimeError, match='Unexpected key.*"visual.extra"'):
        model.load_state_dict(state)


def test_two_names_of_one_weight_are_refused(source: CLIP) -> None:
    state = in_layout(source, "transformers")
    state["text.ln_final.bias"] = torch.ones(32)
    with pytest.raises(StateDictMismatchError, match="mean 'text.ln_final.bias'"):
        other_weights(source).load_state_dict(state)


def test_a_copy_from_optimize_takes_none(source: CLIP) -> None:
    with pytest.raises(ConfigError, match="load weights into the model it is of"):
        source.optimize().load_state_dict(source.state_dict())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_no_weight_of_the_model_is_reported_in_any_layout(
    source: CLIP, layout: str
) -> None:
    state = in_layout(source, layout) | {"adapter.weight": torch.ones(2)}
    with pytest.raises(RuntimeError, match='Unexpected key.*"adapter.weight"'):
        other_weights(source).load_state_dict(state)
    result = other_weights(source).load_state_dict(state, strict=False)
    assert (result.missing_keys, result.unexpected_keys) == ([], ["adapter.weight"])


class WithAdapter(CLIP):
    """Have a part of one's own, and another CLIP inside."""

    def __init__(self, teacher: CLIP) -> None:
        super().__init__(teacher.config)
        self.adapter = nn.Linear(16, 16)
        self.teacher = teacher


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_of_a_subclass_are_loaded_beside_it(source: CLIP, layout: str) -> None:
    model = WithAdapter(other_weights(source)).eval()
    adapter = nn.Linear(16, 16)
    state = in_layout(source, layout)
    state |= {f"adapter.{name}": value for name, value in adapter.state_dict().items()}
    state |= {f"teacher.{name}": value for name, value in source.state_dict().items()}
    state |= {"old_head.weight": torch.ones(3)}
    result = model.load_state_dict(state, strict=False)
    assert (result.missing_keys, result.unexpected_keys) == ([], ["old_head.weight"])
    assert torch.equal(model.adapter.weight, adapter.weight)
    assert_same_weights(model.teacher, source)
    assert_same_weights(model.text, source.text)


@pytest.mark.parametrize("layout", ["openai", "transformers"])
@pytest.mark.parametrize("tower", ["visual", "text"])
def test_one_tower_of_another_layout_needs_strict_false(
    source: CLIP, layout: str, tower: str
) -> None:
    model = other_weights(source)
    whole = in_layout(source, layout)
    marks = ("visual", "vision") if tower == "visual" else ("text", "token", "ln_final", "posit")
    texts = "transformer.", "positional"
    part = {
        name: value
        for name, value in whole.items()
        if name.startswith(marks) or (tower == "text" and name.startswith(texts))
    }
    result = model.load_state_dict(part, strict=False)
    assert result.unexpected_keys == []
    assert_same_weights(getattr(model, tower), getattr(source, tower))


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.module."])
def test_parts_of_a_wrapped_subclass_are_loaded_too(source: CLIP, wrapper: str) -> None:
    """With a buffer of a name that CLIP's own files have beside the weights."""
    model, other = WithAdapter(source).eval(), WithAdapter(other_weights(source)).eval()
    for one in (model, other):
        one.adapter.register_buffer("attn_mask", torch.randn(3))
    state = {f"{wrapper}{name}": value for name, value in other.state_dict().items()}
    result = model.load_state_dict(state)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert_same_weights(model, other)


def test_a_weight_with_and_without_a_wrapper_is_refused(source: CLIP) -> None:
    state = source.state_dict()
    state["module.logit_scale"] = torch.ones(())
    state["module.module.logit_scale"] = torch.ones(())
    with pytest.raises(StateDictMismatchError, match="two entries .* mean 'logit_scale'"):
        other_weights(source).load_state_dict(state)
