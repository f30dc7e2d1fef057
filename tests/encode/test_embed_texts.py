"""embed_texts: the tower's own numbers, whatever the number of texts and the mode of the model."""

import pytest
import torch
import torch.nn.functional as F

from clipkit import CLIP
from clipkit.config import TextConfig
from clipkit.encode.embed import TEXT_BATCH, embed_texts
from clipkit.errors import ConfigError, TokenizerError
from clipkit.tokenizer import Tokenizer
from tests.helpers.toy_data import toy_config


@pytest.fixture(scope="module")
def model(small_tokenizer: Tokenizer) -> CLIP:
    torch.manual_seed(0)
    return CLIP(toy_config(), small_tokenizer).eval()


def test_texts_over_more_than_a_batch(model: CLIP, small_tokenizer: Tokenizer) -> None:
    texts = [f"word {i}" for i in range(TEXT_BATCH + 9)]
    features = embed_texts(model, texts)
    with torch.no_grad():
        expected = F.normalize(model.encode_text(small_tokenizer(texts)), dim=-1)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)


def test_the_tokenizer_of_a_model_in_training_is_made_once(
    small_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call works on a view of such a model, which is forgotten with what it has made."""
    made: list[Tokenizer] = []

    def make(text: TextConfig) -> Tokenizer:
        made.append(small_tokenizer)
        return small_tokenizer

    monkeypatch.setattr("clipkit.clip.default_tokenizer", make)
    model = CLIP(toy_config()).train()
    for _ in range(3):
        embed_texts(model, ["a"])
    assert len(made) == 1
    assert model.training


def test_long_texts_are_cut_only_if_asked(model: CLIP) -> None:
    long = "word " * 50
    with pytest.raises(TokenizerError, match="16"):
        embed_texts(model, ["short", long])
    assert torch.equal(
        embed_texts(model, [long], truncate=True),
        embed_texts(model, [long + "more"], truncate=True),
    )


def test_a_text_is_no_list_of_letters(model: CLIP) -> None:
    with pytest.raises(ConfigError, match=r"takes a list of texts.*\['a cat'\]"):
        embed_texts(model, "a cat")
