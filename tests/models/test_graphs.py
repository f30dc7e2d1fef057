"""Hooks fire; towers can be compiled, traced and exported, and the batch size stays free."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision.models.feature_extraction as extraction
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from clipkit import CLIP
from tests.helpers.towers import (
    NAMES,
    TowerName,
    make_inputs,
    make_resnet,
    make_tower,
    make_vit,
)

Tower = tuple[nn.Module, Tensor]
IMAGES = make_inputs("vit")
TOKENS = make_inputs("text")


@pytest.fixture(scope="module")
def vit() -> CLIP:
    return make_vit()


@pytest.fixture(scope="module", params=NAMES)
def tower(request: pytest.FixtureRequest) -> Tower:
    """Return each tower with seven inputs."""
    return make_tower(request.param), make_inputs(request.param)


@pytest.fixture(scope="module", params=["vit", "text"])
def transformer(request: pytest.FixtureRequest) -> Tower:
    """Return each transformer with seven inputs."""
    return make_tower(request.param), make_inputs(request.param)


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("gradients", [True, False])
def test_every_module_is_called(vit: CLIP, gradients: bool) -> None:
    called: set[str] = set()

    def note(name: str) -> Callable[..., None]:
        return lambda *_: called.add(name)

    hooks = [module.register_forward_hook(note(name)) for name, module in vit.named_modules()]
    with torch.set_grad_enabled(gradients):
        vit(IMAGES, TOKENS)
    for hook in hooks:
        hook.remove()
    skipped = {name for name, _ in vit.named_modules()} - called
    assert {name for name in skipped if not name.endswith("resblocks")} == set()


def test_export_keeps_the_batch_free(transformer: Tower) -> None:
    module, example = transformer
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(module, (example[:2],), dynamic_shapes=({0: batch},)).module()
    for n in (1, 3):
        assert_close(exported(example[:n]), module(example[:n]))


def test_compiles_into_one_graph(transformer: Tower) -> None:
    module, example = transformer
    compiled: Any = torch.compile(module, backend="eager", fullgraph=True)
    assert_close(compiled(example), module(example))


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # it warns of its own age
def test_a_traced_text_tower_takes_longer_texts(vit: CLIP) -> None:
    traced: Any = torch.jit.trace(vit.text, (TOKENS[:1],))
    for row in TOKENS:
        assert_close(traced(row[None]), vit.text(row[None]))


@pytest.mark.parametrize("gradients", [True, False])
def test_symbolic_traces_compute_the_same(tower: Tower, gradients: bool) -> None:
    module, example = tower
    with torch.set_grad_enabled(gradients):
        traced = torch.fx.symbolic_trace(module)
        for n in (1, 7):
            assert_close(traced(example[:n]), module(example[:n]))


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_whole_model_is_traced_symbolically(kind: TowerName) -> None:
    model = make_vit() if kind == "vit" else make_resnet()
    images = make_inputs(kind)
    traced = torch.fx.symbolic_trace(model)
    for n in (1, 7):
        per_image, per_text = traced(images[:n], TOKENS)
        assert_close(per_image, model(images[:n], TOKENS)[0])
        assert_close(per_text, model(images[:n], TOKENS)[1])


def test_torchvision_extracts_all_tokens_of_a_transformer(vit: CLIP) -> None:
    visual: Any = vit.visual
    extractor = extraction.create_feature_extractor(visual, {"transformer": "tokens"})
    assert_close(extractor(IMAGES)["tokens"], visual.tokens(IMAGES, norm=False))


def test_a_symbolic_trace_has_logits_in_float32_under_autocast() -> None:
    model = make_vit()
    traced = torch.fx.symbolic_trace(model)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = traced(IMAGES, TOKENS)[0], model(IMAGES, TOKENS)[0]
    assert found.dtype is expected.dtype is torch.float32


def test_a_symbolic_trace_goes_through_a_program_that_gives_embeddings(vit: CLIP) -> None:
    class Prompts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.clip = vit

        def forward(self, tokens: Tensor, embeddings: Tensor) -> Tensor:
            return self.clip.encode_text(tokens, embeddings=embeddings)

    embeddings = 2 * vit.text.token_embedding(TOKENS).detach()
    traced = torch.fx.symbolic_trace(Prompts())
    assert_close(traced(TOKENS, embeddings), vit.encode_text(TOKENS, embeddings=embeddings))


@pytest.mark.parametrize("gradients", [True, False])
def test_torchvision_extracts_the_features_of_layers(vit: CLIP, gradients: bool) -> None:
    nodes = {
        "transformer.resblocks.0": "block",
        "transformer.resblocks.0.mlp.c_fc": "hidden",
        "transformer.resblocks.1": "last",
        "ln_post": "pooled",
    }
    expected: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, args, output: expected.update({name: output})

    with torch.set_grad_enabled(gradients):
        extractor = extraction.create_feature_extractor(vit.visual, nodes)
        found = extractor(IMAGES)
        hooks = [
            vit.visual.get_submodule(path).register_forward_hook(keep(name))
            for path, name in nodes.items()
        ]
        vit.visual(IMAGES)
    for hook in hooks:
        hook.remove()
    assert found.keys() == expected.keys() == set(nodes.values())
    for name, value in expected.items():
        assert_close(found[name], value)


def test_flops_are_counted_with_and_without_gradients(tower: Tower) -> None:
    """One sample at a time, as several texts would share their prefixes."""
    module, example = tower
    counts: list[int] = []
    for gradients in (True, False):
        counter = FlopCounterMode(display=False)
        with torch.set_grad_enabled(gradients), counter:
            module(example[:1])
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("gradients", [True, False])
def test_flops_are_those_of_the_products(vit: CLIP, gradients: bool) -> None:
    """By hand, for one image. The counter knows nothing of attention's own kernel on a CPU."""
    width, hidden, length, patches = 32, 128, 5, 4
    in_projection = 2 * length * width * 3 * width  # of queries, keys and values
    rest_of_a_token = 2 * width * width + 4 * width * hidden  # the output projection, and the MLP
    expected = (
        2 * patches * (3 * 16 * 16) * width
        + (in_projection + length * rest_of_a_token)  # the first block
        + (in_projection + rest_of_a_token)  # the last, of which one token goes on
        + 2 * width * 16  # to the feature
    )
    counter = FlopCounterMode(display=False)
    with torch.set_grad_enabled(gradients), counter:
        vit.visual(IMAGES[:1])
    counted = counter.get_flop_counts()["Global"]
    products = [torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm]
    assert sum(counted.get(product, 0) for product in products) == expected


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's attention has no rule
def test_towers_can_be_mapped_over_a_batch(vit: CLIP) -> None:
    with torch.no_grad():
        images = torch.vmap(vit.visual)(IMAGES[:, None])[:, 0]  # (N, 1, 3, H, W) -> (N, D)
        tokens = torch.vmap(vit.text)(TOKENS[:, None])[:, 0]  # (N, 1, L) -> (N, D)
        assert_close(images, vit.visual(IMAGES))
        assert_close(tokens, vit.text(TOKENS))
