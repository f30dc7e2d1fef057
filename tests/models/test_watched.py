"""Whoever puts hooks on a tower sees every token of it, batch first, and changes no feature."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.helpers.exact import EXACT, images_for, largest_difference, tokens_for, vit_of
from tests.helpers.towers import make_inputs, make_vit

PARTS = ["", ".ln_1", ".attn", ".attn.out_proj", ".ln_2", ".mlp", ".mlp.gelu", ".mlp.c_proj"]


class Watch:
    """Keep the last output of a module, until the watch ends."""

    def __init__(self, module: nn.Module) -> None:
        self.output: Tensor = torch.empty(0)
        self._hook = module.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: object, output: Tensor) -> None:
        self.output = output.detach()

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("part", PARTS)
def test_the_last_image_block_shows_all_tokens(exact_vit: Any, part: str, gradients: bool) -> None:
    images, visual = images_for(exact_vit), vit_of(exact_vit)
    expected = exact_vit.encode_image(images).detach()
    module = visual.get_submodule(f"transformer.resblocks.2{part}")
    with torch.set_grad_enabled(gradients), Watch(module) as watch:
        features = exact_vit.encode_image(images)
    assert watch.output.shape[:2] == (len(images), len(visual.positional_embedding))
    assert largest_difference(features.detach(), expected) < EXACT
    if part == "":
        tokens = visual.tokens(images, norm=False).detach()
        assert largest_difference(watch.output, tokens) < EXACT


@pytest.mark.parametrize("gradients", [True, False])
def test_the_image_transformer_shows_all_tokens(exact_vit: Any, gradients: bool) -> None:
    """`ln_post` sees one, as the tower norms no other."""
    images, visual = images_for(exact_vit), vit_of(exact_vit)
    expected = exact_vit.encode_image(images).detach()
    with torch.set_grad_enabled(gradients), Watch(visual.transformer) as watch:
        with Watch(visual.ln_post) as pooled:
            features = exact_vit.encode_image(images)
    tokens = visual.tokens(images, norm=False).detach()
    assert largest_difference(watch.output, tokens) < EXACT
    assert largest_difference(features.detach(), expected) < EXACT
    assert pooled.output.shape == (len(images), visual.transformer.width)


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize(
    "part",
    [
        "token_embedding",
        "transformer",
        "transformer.resblocks.0.ln_1",
        *(f"transformer.resblocks.2{part}" for part in PARTS),
        "ln_final",
    ],
)
def test_the_text_tower_shows_every_token_of_every_row(
    exact_vit: Any, part: str, gradients: bool
) -> None:
    """Without hooks there are trees of prefixes, and nothing behind an end is computed."""
    ids = tokens_for(exact_vit)
    ids = torch.cat([ids, ids[:2]])  # some rows are the same
    expected = exact_vit.encode_text(ids).detach()
    with torch.set_grad_enabled(gradients), Watch(exact_vit.text.get_submodule(part)) as watch:
        features = exact_vit.encode_text(ids)
    assert watch.output.shape[:2] == ids.shape
    assert largest_difference(features.detach(), expected) < EXACT
    if part == "ln_final":
        assert largest_difference(watch.output, exact_vit.text.tokens(ids).detach()) < EXACT


def test_a_hook_that_changes_a_token_changes_the_features(exact_vit: Any) -> None:
    """A key of another token matters to the pooled one, so a hook in the last block must act."""
    images, visual = images_for(exact_vit), vit_of(exact_vit)
    expected = exact_vit.encode_image(images).detach()

    def zero(module: nn.Module, args: object, output: Tensor) -> Tensor:
        return torch.cat([output[:, :1], 0 * output[:, 1:]], dim=1)

    hook = visual.get_submodule("transformer.resblocks.2.ln_1").register_forward_hook(zero)
    changed = exact_vit.encode_image(images).detach()
    hook.remove()
    assert largest_difference(changed, expected) > 1e-3
    assert torch.equal(exact_vit.encode_image(images).detach(), expected)


def test_gradients_of_a_block_are_of_all_tokens(exact_vit: Any) -> None:
    """Grad-CAM and its kin read them by a backward hook."""
    images, visual = images_for(exact_vit), vit_of(exact_vit)
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, outputs: Any) -> None:
        seen.append(outputs[0])

    hook = visual.get_submodule("transformer.resblocks.2.ln_1").register_full_backward_hook(keep)
    exact_vit.encode_image(images).sum().backward()
    hook.remove()
    exact_vit.zero_grad()
    assert seen[0].shape[:2] == (len(images), len(visual.positional_embedding))
    assert seen[0][:, 1:].abs().max() > 1e-3


def test_a_backward_hook_on_the_last_mlp_sees_all_tokens(exact_vit: Any) -> None:
    """Keys and values are of all tokens anyway; the MLP is of the one that is kept."""
    images, visual = images_for(exact_vit), vit_of(exact_vit)
    shapes: list[torch.Size] = []

    def keep(module: nn.Module, inputs: Any, outputs: Any) -> None:
        shapes.append(outputs[0].shape)

    mlp = visual.get_submodule("transformer.resblocks.2.mlp")
    hook = mlp.register_full_backward_hook(keep)
    exact_vit.encode_image(images).sum().backward()
    hook.remove()
    exact_vit.zero_grad()
    assert shapes[0][:2] == (len(images), len(visual.positional_embedding))


def test_a_compiled_tower_shows_all_tokens_too(exact_vit: Any) -> None:
    images, visual = images_for(exact_vit), vit_of(exact_vit)
    expected = exact_vit.encode_image(images).detach()
    shapes: list[torch.Size] = []

    def keep(module: nn.Module, args: object, output: Tensor) -> None:
        shapes.append(output.shape)

    hook = visual.get_submodule("transformer.resblocks.2.mlp").register_forward_hook(keep)
    compiled: Any = torch.compile(visual, backend="eager")
    features = compiled(images)
    hook.remove()
    assert shapes[-1][:2] == (len(images), len(visual.positional_embedding))
    assert largest_difference(features.detach(), expected) < EXACT


@pytest.mark.parametrize("tower", ["visual", "text"])
def test_profilers_see_the_work_as_it_is_done(tower: Any) -> None:
    """A counter of FLOPs has hooks on every module of the process; it is not to change the work."""
    model: Any = make_vit()
    module = getattr(model, tower)
    inputs = make_inputs("vit" if tower == "visual" else "text")[:1]
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        module(inputs)
    with torch.no_grad(), Watch(module.transformer.resblocks[1].mlp):
        watched = FlopCounterMode(display=False)
        with watched:
            module(inputs)
    assert counter.get_total_flops() < watched.get_total_flops()
