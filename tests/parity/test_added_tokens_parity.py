"""A token that was added to a vocabulary: the same ids and features as by transformers."""

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

import clipkit
from clipkit import CLIP, Tokenizer
from clipkit.tokenizer import default_merges
from tests.helpers.models import VIT
from tests.helpers.peers import transformers
from tests.helpers.random_weights import randomize

TEXTS = ["a photo of a <cat-toy> on a mat", "A <CAT-TOY>s, twice: <cat-toy>", "a dog", "<cat-toy>"]
TABLE = default_merges()[:86]
CONFIG = replace(VIT, text=replace(VIT.text, vocab_size=601, end_of_text=599))


def assert_alike(ours: CLIP, folder: Path) -> None:
    """Fail unless transformers makes the same ids and features of the texts, from a folder."""
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    theirs = transformers.CLIPModel.from_pretrained(folder)
    rows = [tokenizer(text).input_ids for text in TEXTS]
    assert [[598, *ours.tokenizer.encode(text), 599] for text in TEXTS] == rows
    assert any(600 in row for row in rows)
    tokens = tokenizer(TEXTS, padding="max_length", max_length=24, return_tensors="pt")
    with torch.no_grad():
        expected = theirs.get_text_features(**tokens)
        expected = getattr(expected, "pooler_output", expected)
        found = ours.encode_text(ours.tokenizer(TEXTS))
    cosines = F.cosine_similarity(found, expected)
    assert (1 - cosines).abs().max() < 1e-6
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_transformers_reads_what_we_save(tmp_path: Path) -> None:
    config = replace(CONFIG, text=replace(CONFIG.text, context_length=24))
    tokenizer = Tokenizer(TABLE, 24, {"<cat-toy>": 600})
    model = randomize(CLIP(config, tokenizer))
    model.save_pretrained(tmp_path / "ours", layout="transformers")
    assert_alike(model, tmp_path / "ours")

    # What transformers then saves itself, in one file of its own.
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    transformers.CLIPModel.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    loaded, _ = clipkit.load(tmp_path / "theirs", "cpu")
    assert loaded.tokenizer == tokenizer
    assert_alike(loaded, tmp_path / "theirs")


def test_we_read_a_token_that_transformers_adds(tmp_path: Path) -> None:
    text = replace(CONFIG.text, vocab_size=600, end_of_text=None, context_length=24)
    model = randomize(CLIP(replace(CONFIG, text=text), Tokenizer(TABLE, 24)))
    model.save_pretrained(tmp_path / "before", layout="transformers")
    for exact in (False, True):
        tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path / "before")
        theirs = transformers.CLIPModel.from_pretrained(tmp_path / "before")
        assert tokenizer.add_tokens(["<cat-toy>"], special_tokens=exact) == 1
        name = "text_model.embeddings.token_embedding.weight"
        weights = theirs.state_dict()
        weights[name] = torch.cat([weights[name], torch.randn(1, 64)])
        theirs.config.text_config.vocab_size = 601
        theirs = transformers.CLIPModel(theirs.config)
        theirs.load_state_dict(weights)
        folder = tmp_path / f"after {exact}"
        theirs.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        loaded, _ = clipkit.load(folder, "cpu")
        assert loaded.config.text.end_of_text == 599
        assert loaded.tokenizer.exact_tokens == ({"<cat-toy>"} if exact else set())
        assert_alike(loaded, folder)
