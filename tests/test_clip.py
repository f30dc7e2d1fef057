"""What CLIP takes and refuses: empty batches, wrong shapes and dtypes, ids of another vocabulary."""

import pytest
import torch
from torch import Tensor

from clipkit.clip import CLIP
from clipkit.errors import ImageError, TokenizerError
from tests.helpers.random_weights import some_images, some_tokens

VOCAB, CONTEXT = 600, 16  # of the models in conftest.py


def test_empty_batches(clip: CLIP) -> None:
    height, width = clip.visual.resolution
    no_images, no_tokens = (
        torch.zeros(0, 3, height, width),
        torch.zeros(0, CONTEXT, dtype=torch.int64),
    )
    assert clip.encode_image(no_images, normalize=True).shape == (0, 32)
    assert clip.encode_text(no_tokens, normalize=True).shape == (0, 32)
    assert clip(no_images, some_tokens(3, CONTEXT, VOCAB))[0].shape == (0, 3)
    assert clip(some_images(2, (height, width)), no_tokens)[1].shape == (0, 2)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(3, 48, 48),
        torch.zeros(1, 3, 48, 32),
        torch.zeros(1, 1, 48, 48),
        torch.zeros(1, 3, 48, 48, dtype=torch.uint8),
    ],
)
def test_bad_images_are_refused(vit: CLIP, images: Tensor) -> None:
    with pytest.raises(
        ImageError, match=r"needs a float tensor of shape \(N, 3, 48, 48\), not torch\.\w+ of \("
    ):
        vit.encode_image(images)


@pytest.mark.parametrize(
    "tokens",
    [
        torch.zeros(CONTEXT, dtype=torch.int64),
        torch.zeros(1, CONTEXT + 1, dtype=torch.int64),
        torch.zeros(1, 0, dtype=torch.int64),
        torch.zeros(1, CONTEXT),
        torch.zeros(1, CONTEXT, dtype=torch.bool),
        torch.zeros(1, CONTEXT, dtype=torch.int16),
    ],
)
def test_bad_tokens_are_refused(vit: CLIP, tokens: Tensor) -> None:
    with pytest.raises(
        TokenizerError, match=r"needs int64 or int32 .+ \(N, 1 to 16\), not torch\.\w+ of"
    ):
        vit.encode_text(tokens)


@pytest.mark.parametrize("bad", [-1, VOCAB])
def test_ids_outside_the_vocabulary_are_refused(vit: CLIP, bad: int) -> None:
    tokens = some_tokens(4, CONTEXT, VOCAB)
    tokens[2, 1] = bad
    with pytest.raises(TokenizerError, match="this model knows 0 to 599"):
        vit.encode_text(tokens)
