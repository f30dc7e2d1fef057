"""Hooks fire, and the towers can be compiled, traced and exported with a batch size that stays free."""

import warnings

import pytest
import torch

import clipkit
from clipkit import CLIP, CLIPConfig, TextConfig, ViTConfig


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = CLIPConfig(
        embed_dim=16,
        vision=ViTConfig(
            resolution=32, patch_size=16, width=32, layers=2, head_width=16, activation="gelu"
        ),
        text=TextConfig(width=32, layers=2, head_width=16, activation="gelu"),
    )
    return CLIP(config).eval()


IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TOKENS = clipkit.tokenize(["a cat", "a much longer text about a dog", ""])


def test_every_module_is_called(model: CLIP) -> None:
    called = set()
    hooks = [
        module.register_forward_hook(lambda *_, name=name: called.add(name))
        for name, module in model.named_modules()
    ]
    model(IMAGES, TOKENS)
    for hook in hooks:
        hook.remove()
    skipped = {name for name, _ in model.named_modules()} - called
    assert {name for name in skipped if not name.endswith("resblocks")} == set()


@pytest.mark.parametrize("tower", ["visual", "text"])
def test_export_keeps_the_batch_free(model: CLIP, tower) -> None:
    module, example = getattr(model, tower), IMAGES if tower == "visual" else TOKENS
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(module, (example[:2],), dynamic_shapes=({0: batch},)).module()
    for n in (1, 3):
        torch.testing.assert_close(exported(example[:n]), module(example[:n]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("tower", ["visual", "text"])
def test_compiles_into_one_graph(model: CLIP, tower) -> None:
    module, example = getattr(model, tower), IMAGES if tower == "visual" else TOKENS
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(example), module(example), atol=1e-6, rtol=1e-5)


def test_a_traced_text_tower_takes_longer_texts(model: CLIP) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit warns of its own age
        traced = torch.jit.trace(model.text, (TOKENS[:1],))
    torch.testing.assert_close(traced(TOKENS[1:2]), model.text(TOKENS[1:2]), atol=1e-6, rtol=1e-5)
