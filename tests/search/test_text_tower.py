"""The text tower alone makes the features that the whole model makes."""

from pathlib import Path

import pytest
import torch

from clipkit import CLIP, Tokenizer, embed_texts
from clipkit.checkpoints.load import load_checkpoint
from clipkit.errors import TokenizerError
from clipkit.search.text_tower import text_tower_of
from tests.helpers.toy_data import toy_config

TEXTS = ["a cat", "a dog in the snow at night", "a cat and a dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, small_tokenizer: Tokenizer) -> Path:
    saved = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    CLIP(toy_config(), small_tokenizer).save_pretrained(saved)
    return saved


@pytest.mark.parametrize("name", ["tiny", "saved"])
def test_features_are_those_of_the_whole_model(name: str, folder: Path) -> None:
    source = folder if name == "saved" else name
    tower = text_tower_of(load_checkpoint(source), device="cpu")
    whole = CLIP.from_pretrained(source, device="cpu")
    assert torch.equal(embed_texts(tower, TEXTS), embed_texts(whole, TEXTS))
    assert not hasattr(tower, "visual")


def test_a_given_tokenizer_comes_before_that_of_the_weights() -> None:
    tokenizer = Tokenizer(context_length=16)
    tower = text_tower_of(load_checkpoint("tiny"), tokenizer, device="cpu")
    assert tower.tokenizer is tokenizer


def test_tokens_outside_the_vocabulary_are_a_typed_error() -> None:
    tower = text_tower_of(load_checkpoint("tiny"), device="cpu")
    with pytest.raises(TokenizerError, match="token ids run from 49406 to 60000"):
        tower.encode_text(torch.tensor([[49406, 60000, 49407]]))
