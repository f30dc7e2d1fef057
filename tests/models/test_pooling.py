"""The shortcuts of the pooled towers give what full towers give, with the same gradients."""

import copy

import pytest
import torch
from torch import Tensor, nn

from clipkit.clip import CLIP
from clipkit.models.layers import ResidualAttentionBlock, Transformer
from tests.helpers.exact import (
    CONTEXT,
    EXACT,
    VOCAB,
    assert_same_gradients,
    gradients_of,
    images_for,
    largest_difference,
    tokens_for,
    vit_of,
)
from tests.helpers.random_weights import assert_distinct, randomize, some_tokens
from tests.helpers.recorded import record


@pytest.mark.parametrize("causal", [False, True])
def test_a_pooled_transformer_equals_the_full_one(causal: bool) -> None:
    stack = randomize(Transformer(24, 3, 3, 60, "quick_gelu", causal).double())
    # The input is a weight here, so that its gradient is compared too.
    source = nn.Embedding(5 * 9, 24, dtype=torch.float64)
    x = source.weight.view(5, 9, 24)
    at: Tensor | int = torch.tensor([8, 0, 3, 7, 1]) if causal else 0
    pooled = stack(x, at=at)
    full = stack(x, at="all")[torch.arange(5), at]
    assert pooled.shape == (5, 24)
    assert largest_difference(pooled.detach(), full.detach()) < EXACT
    by_pooled = gradients_of(pooled, stack, source)
    assert_same_gradients(by_pooled, gradients_of(full, stack, source))
    assert len(by_pooled) == 3 * 12 + 1


def full_text(model: CLIP, tokens: Tensor) -> Tensor:
    """Return the features of a text tower with nothing cut: each position through each block."""
    text = model.text
    x = text.token_embedding(tokens) + text.positional_embedding[: tokens.shape[1]]
    x = text.ln_final(text.transformer(x, at="all"))
    return x[torch.arange(len(tokens)), tokens.argmax(dim=-1)] @ text.text_projection


def full_image(model: CLIP, images: Tensor) -> Tensor:
    visual = vit_of(model)
    return visual.ln_post(visual.transformer(visual.embed(images), at="all"))[:, 0] @ visual.proj


@pytest.mark.parametrize("longest", [3, 9, CONTEXT])
def test_trimmed_text_equals_untrimmed(exact_vit: CLIP, longest: int) -> None:
    tokens = torch.zeros(5, CONTEXT, dtype=torch.int64)
    tokens[:, :longest] = some_tokens(5, longest, VOCAB)
    trimmed, full = exact_vit.encode_text(tokens), full_text(exact_vit, tokens)
    assert largest_difference(trimmed.detach(), full.detach()) < EXACT
    by_trimmed = gradients_of(trimmed, exact_vit.text)
    assert_same_gradients(by_trimmed, gradients_of(full, exact_vit.text))
    assert not by_trimmed["0.positional_embedding"][longest:].any()


def test_a_pooled_image_tower_equals_the_full_one(exact_vit: CLIP) -> None:
    images = images_for(exact_vit)
    pooled, full = exact_vit.encode_image(images), full_image(exact_vit, images)
    assert largest_difference(pooled.detach(), full.detach()) < EXACT
    by_pooled = gradients_of(pooled, exact_vit.visual)
    assert_same_gradients(by_pooled, gradients_of(full, exact_vit.visual))


def test_nothing_beyond_the_last_end_of_text_is_computed(exact_vit: CLIP) -> None:
    tokens = torch.zeros(4, CONTEXT, dtype=torch.int64)
    tokens[:, :7] = some_tokens(4, 7, VOCAB)
    seen: list[tuple[int, ...]] = []
    model = copy.deepcopy(exact_vit)
    blocks = [part for part in model.text.modules() if isinstance(part, ResidualAttentionBlock)]
    for block in blocks:
        record(block, "mlp", seen)
    model.encode_text(tokens)
    assert seen == [(4, 7, 36), (4, 7, 36), (4, 1, 36)]


@pytest.mark.parametrize("end", [None, VOCAB - 1])
def test_text_does_not_depend_on_what_follows_its_end(exact_vit: CLIP, end: int | None) -> None:
    """Not on other ends either: the first one counts."""
    model = copy.deepcopy(exact_vit)
    model.text.end_of_text = end
    tokens = tokens_for(exact_vit)
    expected = exact_vit.encode_text(tokens).detach()
    assert_distinct(expected)
    after = torch.arange(CONTEXT) > tokens.argmax(dim=-1)[:, None]
    words = torch.randint(0, VOCAB, tokens.shape, generator=torch.Generator().manual_seed(4))
    end_of_text, start_of_text = torch.tensor(VOCAB - 1), torch.tensor(VOCAB - 2)
    for filling in (end_of_text, start_of_text, words):
        filled = torch.where(after, filling, tokens)
        assert torch.equal(model.encode_text(filled), expected)
        with torch.no_grad():  # which takes another way
            assert largest_difference(model.encode_text(filled), expected) < EXACT


def test_text_depends_on_what_precedes_its_end(exact_vit: CLIP) -> None:
    tokens = tokens_for(exact_vit)
    expected = exact_vit.encode_text(tokens).detach()
    other = torch.where(torch.arange(CONTEXT) == 1, 5, tokens)
    assert largest_difference(exact_vit.encode_text(other).detach(), expected) > 1e-2


def test_shorter_rows_and_narrower_ids_give_the_same(exact_vit: CLIP) -> None:
    tokens = tokens_for(exact_vit)
    expected = exact_vit.encode_text(tokens).detach()
    shorter = tokens[:3, : int(tokens[:3].argmax(dim=-1).max()) + 1]
    found = exact_vit.encode_text(shorter).detach()
    assert largest_difference(found, expected[:3]) < EXACT
    assert torch.equal(exact_vit.encode_text(tokens.int()), expected)


def test_features_do_not_depend_on_the_batch(exact_model: CLIP) -> None:
    """In float32 within 1e-6 a component of a unit vector, as sums are taken in another order."""
    model = copy.deepcopy(exact_model).float()
    inputs = [(model.encode_image, images_for(model, 5)), (model.encode_text, tokens_for(model, 5))]
    for encode, batch in inputs:
        together = encode(batch, normalize=True).detach()
        one_by_one = torch.cat([encode(item[None], normalize=True) for item in batch]).detach()
        assert_distinct(together)
        assert largest_difference(together, one_by_one) < 1e-6
