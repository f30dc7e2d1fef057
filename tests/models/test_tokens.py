"""All tokens of a tower, and features of embeddings that the caller has made."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clipkit import CLIP
from clipkit.errors import ConfigError, ImageError, TokenizerError
from tests.helpers.exact import CONTEXT, EXACT, images_for, largest_difference, tokens_for, vit_of
from tests.helpers.random_weights import randomize
from tests.helpers.recorded import record
from tests.helpers.towers import make_inputs, make_resnet, make_vit


def text_by_hand(model: Any, embeddings: Tensor, blocks: int) -> Tensor:
    """Return all tokens after some blocks, with masks by their definition, (N, L, W)."""
    text = model.text
    x = embeddings + text.positional_embedding[: embeddings.shape[1]]
    for block in text.transformer.resblocks[:blocks]:
        x = block(x, at="all")
    return x


def test_text_tokens_are_all_positions_after_each_block(exact_vit: Any) -> None:
    ids = tokens_for(exact_vit)
    embeddings = exact_vit.text.token_embedding(ids)
    count = len(exact_vit.text.transformer.resblocks)
    for block in range(count):
        expected = text_by_hand(exact_vit, embeddings, block + 1)
        for number in (block, block - count):
            found = exact_vit.text.tokens(ids, block=number, norm=False)
            assert found.shape == (len(ids), CONTEXT, 36)
            assert largest_difference(found.detach(), expected.detach()) < EXACT


def test_the_text_feature_is_the_token_at_the_end(exact_vit: Any) -> None:
    ids, text = tokens_for(exact_vit), exact_vit.text
    at_ends = text.tokens(ids)[torch.arange(len(ids)), text.find_ends(ids)]
    expected = exact_vit.encode_text(ids).detach()
    assert largest_difference((at_ends @ text.text_projection).detach(), expected) < EXACT


def test_the_image_feature_is_the_first_token(exact_vit: Any) -> None:
    images, visual = images_for(exact_vit), vit_of(exact_vit)
    tokens = visual.tokens(images)
    assert tokens.shape == (len(images), len(visual.positional_embedding), visual.transformer.width)
    assert visual.proj is not None
    expected = exact_vit.encode_image(images).detach()
    assert largest_difference((tokens[:, 0] @ visual.proj).detach(), expected) < EXACT


def test_image_tokens_after_each_block_are_normed_or_not(exact_vit: Any) -> None:
    images, visual = images_for(exact_vit), vit_of(exact_vit)
    x = visual.embed(images)
    for number, block in enumerate(visual.transformer.resblocks):
        x = block(x, at="all")
        raw = visual.tokens(images, block=number, norm=False)
        normed = visual.tokens(images, block=number)
        assert largest_difference(raw.detach(), x.detach()) < EXACT
        assert largest_difference(normed.detach(), visual.ln_post(x).detach()) < EXACT


def test_tokens_of_a_resnet_are_what_the_pool_takes(exact_resnet: Any) -> None:
    images, visual = images_for(exact_resnet), exact_resnet.visual
    tokens = visual.tokens(images)  # (N, HW, C)
    rows, columns = (side // 32 for side in visual.resolution)
    maps = tokens.transpose(1, 2).unflatten(2, (rows, columns))  # (N, C, H, W)
    expected = exact_resnet.encode_image(images).detach()
    assert largest_difference(visual.attnpool(maps).detach(), expected) < EXACT
    first = visual.tokens(images, stage=0)
    assert first.shape == (len(images), rows * columns * 64, visual.layer1[-1].bn3.num_features)
    assert torch.equal(first, visual.tokens(images, stage=-4))


@pytest.mark.parametrize("block", [2, -3, 1.0, "last", None, True])
def test_a_block_that_is_not_there_is_refused(block: Any) -> None:
    model: Any = make_vit()
    with pytest.raises(ConfigError, match=r"no block .* among 2: pass 0 to 1, or -1 to -2"):
        model.visual.tokens(make_inputs("vit"), block=block)
    with pytest.raises(ConfigError, match=r"no block .* among 2"):
        model.text.tokens(make_inputs("text"), block=block)


@pytest.mark.parametrize("stage", [4, -5, "layer1", True])
def test_a_stage_that_is_not_there_is_refused(stage: Any) -> None:
    resnet: Any = make_resnet()
    with pytest.raises(ConfigError, match="no stage .* pass 0 to 3"):
        resnet.visual.tokens(make_inputs("resnet"), stage=stage)


def test_wrong_inputs_are_refused_by_name() -> None:
    model: Any = make_vit()
    with pytest.raises(ImageError, match=r"visual\.tokens needs a float tensor"):
        model.visual.tokens(make_inputs("vit")[0])
    with pytest.raises(ImageError, match=r"visual\.tokens needs a float tensor"):
        make_resnet().visual.tokens(make_inputs("vit"))
    with pytest.raises(TokenizerError, match=r"text\.tokens needs int64"):
        model.text.tokens(["a cat"])


def test_embeddings_stand_in_the_place_of_those_looked_up(exact_vit: Any) -> None:
    ids = tokens_for(exact_vit)
    embeddings = exact_vit.text.token_embedding(ids).detach()
    expected = exact_vit.encode_text(ids, normalize=True).detach()
    with torch.no_grad():
        found = exact_vit.encode_text(ids, normalize=True, embeddings=embeddings)
        by_tower = exact_vit.text(ids, embeddings=embeddings)
        tokens = exact_vit.text.tokens(ids, embeddings=embeddings)
    assert largest_difference(found, expected) < EXACT
    assert largest_difference(by_tower, exact_vit.encode_text(ids).detach()) < EXACT
    assert largest_difference(tokens, exact_vit.text.tokens(ids).detach()) < EXACT


def test_other_embeddings_give_what_the_tower_makes_of_them_by_hand(exact_vit: Any) -> None:
    """Values and gradients, against all positions through all blocks."""
    ids, text = tokens_for(exact_vit), exact_vit.text
    random = torch.Generator().manual_seed(3)
    changed = torch.randn((*ids.shape, 36), dtype=torch.float64, generator=random)
    direction = torch.randn(len(ids), exact_vit.config.embed_dim, generator=random).double()
    values: list[Tensor] = []
    gradients: list[Tensor] = []
    for by_hand in (False, True):
        given = changed.clone().requires_grad_()
        if by_hand:
            x = text.ln_final(text_by_hand(exact_vit, given, 99))
            ends = ids.argmax(dim=-1)
            features = x[torch.arange(len(ids)), ends] @ text.text_projection
        else:
            features = exact_vit.encode_text(ids, embeddings=given)
        (gradient,) = torch.autograd.grad((features * direction).sum(), given)
        values.append(features.detach())
        gradients.append(gradient)
    assert largest_difference(*values) < EXACT
    assert largest_difference(*gradients) < EXACT
    assert gradients[0].abs().max() > 1e-3


def test_embeddings_behind_the_last_end_are_not_computed() -> None:
    model: Any = make_vit()
    ids = torch.zeros(3, 16, dtype=torch.int64)
    ids[:, :5] = make_inputs("text")[:3, :5].clamp(max=500)
    ids[:, 5] = 599
    shapes: list[tuple[int, ...]] = []
    record(model.text.transformer.resblocks[0], "ln_1", shapes)
    model.encode_text(ids, embeddings=model.text.token_embedding(ids))
    assert shapes == [(3, 6, 32)]


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        (torch.ones(7, 16, 31), r"\(7, 16, 32\), .*not torch.float32 of \(7, 16, 31\)"),
        (torch.ones(7, 1, 32), r"\(7, 16, 32\), .*not torch.float32 of \(7, 1, 32\)"),
        (torch.ones(7, 15, 32), r"\(7, 16, 32\), .*not torch.float32 of \(7, 15, 32\)"),
        (torch.ones(7, 16, 32).long(), r"\(7, 16, 32\), .*not torch.int64"),
        ([[1.0]], r"\(7, 16, 32\), .*not list"),
    ],
    ids=["width", "one for all", "length", "dtype", "list"],
)
def test_embeddings_that_do_not_fit_the_ids_are_refused(embeddings: Any, message: str) -> None:
    model: Any = make_vit()
    ids = make_inputs("text")
    with pytest.raises(TokenizerError, match="encode_text needs float embeddings.*" + message):
        model.encode_text(ids, embeddings=embeddings)
    with pytest.raises(TokenizerError, match=r"text\.tokens needs float embeddings.*" + message):
        model.text.tokens(ids, embeddings=embeddings)
    with pytest.raises(TokenizerError, match="the text tower needs float embeddings.*" + message):
        model.text(ids, embeddings)


def test_embeddings_come_in_any_float_dtype() -> None:
    model: Any = make_vit()
    ids = make_inputs("text")
    doubles = model.text.token_embedding(ids).detach().double().requires_grad_()
    features = model.encode_text(ids, embeddings=doubles)
    assert features.dtype is torch.float32
    assert torch.equal(features, model.encode_text(ids))
    features.sum().backward()
    assert doubles.grad is not None
    assert doubles.grad.dtype is torch.float64


def test_a_symbolic_trace_takes_embeddings_too() -> None:
    text: Any = make_vit().text
    ids = make_inputs("text")
    traced = torch.fx.symbolic_trace(text)
    embeddings = torch.randn(7, 16, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(traced(ids), text(ids))
    torch.testing.assert_close(traced(ids, embeddings), text(ids, embeddings))


def test_without_a_projection_features_are_as_wide_as_the_towers(exact_vit: Any) -> None:
    model = copy.deepcopy(exact_vit)
    images, ids = images_for(model), tokens_for(model)
    visual, text = vit_of(exact_vit), exact_vit.text
    vit_of(model).proj = None
    model.text.text_projection = None
    with torch.no_grad():
        image_features, text_features = model.encode_image(images), model.encode_text(ids)
        by_rows = model.encode_text(ids[:1])
        assert visual.proj is not None
        expected = [exact_vit.encode_image(images), exact_vit.encode_text(ids)]
        assert largest_difference(image_features @ visual.proj, expected[0]) < EXACT
        assert largest_difference(text_features @ text.text_projection, expected[1]) < EXACT
        assert largest_difference(by_rows, text_features[:1]) < EXACT
    assert image_features.shape[1] == visual.transformer.width


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_towers_alone_cast_images_as_the_model_does(kind: Any) -> None:
    model: Any = make_vit() if kind == "vit" else make_resnet()
    model.bfloat16()
    images = make_inputs(kind)
    with torch.no_grad():
        assert torch.equal(model.visual(images), model.encode_image(images))


def test_towers_without_projections_are_not_compared() -> None:
    model: Any = make_vit()
    model.visual.proj = None
    with pytest.raises(ConfigError, match="width 32 cannot be compared .* width 16: a projection"):
        model(make_inputs("vit"), make_inputs("text"))


@pytest.mark.parametrize("layout", ["clipkit", "transformers"])
def test_a_model_without_a_part_is_not_saved(layout: Any, tmp_path: Path) -> None:
    """What was saved could not be loaded again."""
    model: Any = make_vit()
    model.text.text_projection = None
    with pytest.raises(ConfigError, match=r"the model has no text\.text_projection.*put back"):
        model.save_pretrained(tmp_path, layout=layout)
    assert list(tmp_path.iterdir()) == []


def gradients_by(
    model: Any, ids: Tensor, shared: int, options: dict[str, int]
) -> tuple[Tensor, list[Tensor]]:
    """Return features, and gradients of a context of all rows and of what each has alone."""
    random = torch.Generator().manual_seed(3)
    context = torch.randn(1, shared, 36, dtype=torch.float64, generator=random).requires_grad_()
    rest = torch.randn(len(ids), ids.shape[1] - shared, 36, dtype=torch.float64, generator=random)
    rest.requires_grad_()
    embeddings = torch.cat([context.expand(len(ids), -1, -1), rest], dim=1)
    features = model.encode_text(ids, embeddings=embeddings, **options)
    direction = torch.randn(features.shape, dtype=torch.float64, generator=random)
    found = torch.autograd.grad((features * direction).sum(), [context, rest])
    return features.detach(), list(found)


@pytest.mark.parametrize("count", [1, 6, 60])
@pytest.mark.parametrize("shared", [1, 4, 9])
def test_what_rows_share_is_computed_once(exact_vit: Any, count: int, shared: int) -> None:
    """Some rows end within it. Values and gradients are those of rows alone."""
    ids = tokens_for(exact_vit, count)
    features, gradients = gradients_by(exact_vit, ids, shared, {"shared": shared})
    expected, by_rows = gradients_by(exact_vit, ids, shared, {})
    assert largest_difference(features, expected) < EXACT
    for found, alone in zip(gradients, by_rows, strict=True):
        assert largest_difference(found, alone) < 100 * EXACT
    assert gradients[0].abs().max() > 1e-3


def test_sharing_computes_less() -> None:
    model: Any = make_vit()
    ids = torch.ones(5, 16, dtype=torch.int64)
    ids[:, 9] = 599
    shapes: list[tuple[int, ...]] = []
    record(model.text.transformer.resblocks[0], "ln_1", shapes)
    embeddings = torch.randn(1, 16, 32).expand(5, -1, -1)
    model.encode_text(ids, embeddings=embeddings, shared=7)
    assert shapes == [(7 + 5 * 3, 32)]


def test_sharing_knows_an_end_of_text_that_is_not_the_highest() -> None:
    config = make_vit().config
    text = dataclasses.replace(config.text, end_of_text=7)
    model: Any = randomize(CLIP(dataclasses.replace(config, text=text)))
    ids = torch.full((4, 16), 9)
    ids[torch.arange(4), torch.tensor([3, 5, 9, 15])] = 7
    embeddings = torch.randn(4, 16, 32, generator=torch.Generator().manual_seed(1))
    embeddings[:, :4] = embeddings[:1, :4].clone()
    found = model.encode_text(ids, embeddings=embeddings, shared=4)
    expected = model.encode_text(ids, embeddings=embeddings)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("shared", "message"),
    [
        (-1, "shared must be a number of embeddings, from 0, not -1"),
        (2.0, r"shared must be a number of embeddings, from 0, not 2\.0"),
        (17, "rows of 16 embeddings cannot share 17"),
        (3, "the rows differ in their first 3 embeddings: share fewer"),
    ],
)
def test_what_rows_cannot_share_is_refused(shared: Any, message: str) -> None:
    model: Any = make_vit()
    ids = make_inputs("text")
    embeddings = torch.randn(7, 16, 32, generator=torch.Generator().manual_seed(1))
    with pytest.raises(TokenizerError, match=message):
        model.encode_text(ids, embeddings=embeddings, shared=shared)


def test_ids_share_by_themselves() -> None:
    with pytest.raises(TokenizerError, match="shared is of embeddings"):
        make_vit().encode_text(make_inputs("text"), shared=3)


@pytest.mark.parametrize("gradients", [True, False])
def test_an_embedding_in_the_place_of_the_towers_own_is_called(gradients: bool) -> None:
    """Adapters put one there. Trees of prefixes must not look past it at a weight."""
    model: Any = make_vit()
    ids = make_inputs("text")
    expected = model.encode_text(ids, embeddings=3 * model.text.token_embedding(ids)).detach()

    class Tripled(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, tokens: Tensor) -> Tensor:
            return 3 * self.inner(tokens)

    model.text.token_embedding = Tripled(model.text.token_embedding)
    with torch.set_grad_enabled(gradients):
        found = model.encode_text(ids)
    torch.testing.assert_close(found.detach(), expected, rtol=1e-4, atol=1e-4)
