"""Vocabularies with added tokens: the end of a text is where the config says (kind L)."""

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import clipkit
from clipkit import CLIP, CLIPConfig, TextConfig, Tokenizer
from clipkit.checkpoints.infer import from_open_clip, from_transformers
from clipkit.checkpoints.save import FolderLayout
from clipkit.checkpoints.vocabulary import check_tokenizer
from clipkit.errors import (
    ConfigError,
    CorruptCheckpointError,
    TokenizerError,
)
from clipkit.tokenizer import default_merges
from tests.helpers.models import VIT, assert_same_weights, random_clip

# The small tokenizer has 600 tokens, and 599 ends a text.
END = 599
TEXTS = ["a <cat> on a mat", "dog", "<cat><cat>", "a <dog> and a <cat>"]
ADDED = {"<cat>": 600, "<dog>": 601}


def tokenizer_with(added: Mapping[str, int], exact: tuple[str, ...] = ()) -> Tokenizer:
    return Tokenizer(default_merges()[:86], 16, added, exact)


def config_with(vocab_size: int, end_of_text: int | None) -> CLIPConfig:
    return replace(VIT, text=replace(VIT.text, vocab_size=vocab_size, end_of_text=end_of_text))


@pytest.fixture(scope="module")
def model() -> CLIP:
    return random_clip(config_with(602, END), tokenizer_with(ADDED))


def read_at(model: CLIP, tokens: Tensor, position: list[int]) -> Tensor:
    """Return features with nothing left out, read at given positions."""
    text = model.text
    x = text.token_embedding(tokens) + text.positional_embedding[: tokens.shape[1]]
    x = text.ln_final(text.transformer(x, at="all"))
    return x[torch.arange(len(tokens)), torch.tensor(position)] @ text.text_projection


@pytest.mark.parametrize("gradients", [True, False])
def test_features_are_read_at_the_end_of_text(model: CLIP, gradients: bool) -> None:
    tokens = model.tokenizer(TEXTS)
    ends = [row.tolist().index(END) for row in tokens]
    expected = read_at(model, tokens, ends)
    highest = read_at(model, tokens, tokens.argmax(dim=1).tolist())
    with torch.set_grad_enabled(gradients):
        together = model.encode_text(tokens)
        alone = torch.cat([model.encode_text(row[None]) for row in tokens])
    torch.testing.assert_close(together, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(alone, expected, rtol=0, atol=1e-5)
    assert (together - highest).abs().max() > 1e-2
    torch.testing.assert_close(
        model.embed_texts(TEXTS),
        torch.nn.functional.normalize(expected, dim=-1),
        rtol=0,
        atol=1e-5,
    )


def test_a_recorded_graph_reads_there_too(model: CLIP) -> None:
    tokens = model.tokenizer(TEXTS)
    graph = torch.export.export(model.text, (tokens,)).module()
    with torch.no_grad():
        expected = model.encode_text(tokens)
    torch.testing.assert_close(graph(tokens), expected, rtol=0, atol=1e-5)


def test_what_follows_the_end_has_no_influence(model: CLIP) -> None:
    tokens = model.tokenizer(TEXTS)
    filled = tokens.clone()
    filled[filled == 0] = 601
    with torch.no_grad():
        assert torch.equal(model.encode_text(filled), model.encode_text(tokens))


def test_a_row_without_an_end_is_named(model: CLIP) -> None:
    tokens = model.tokenizer(TEXTS)
    tokens[2][tokens[2] == END] = 5
    with pytest.raises(TokenizerError, match="row 2 of the token ids has no end of text.* 599"):
        model.encode_text(tokens)


@pytest.mark.parametrize("layout", ["clipkit", "open_clip", "transformers"])
def test_a_model_with_added_tokens_is_saved_and_read(
    layout: FolderLayout, model: CLIP, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path, layout=layout)
    loaded = CLIP.from_pretrained(tmp_path, device="cpu")
    assert loaded.config == model.config
    assert loaded.tokenizer == model.tokenizer
    assert_same_weights(loaded.state_dict(), model.state_dict())
    assert torch.equal(loaded.embed_texts(TEXTS), model.embed_texts(TEXTS))


def test_configs_without_added_tokens_are_written_as_before() -> None:
    assert "end_of_text" not in VIT.to_dict()["text"]
    config = config_with(602, END)
    assert config.to_dict()["text"]["end_of_text"] == END
    assert CLIPConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("end", [-1, 600, 1.0, True, "599", [599]])
def test_an_end_that_is_no_token_is_refused(end: Any) -> None:
    with pytest.raises(ConfigError, match="TextConfig.end_of_text must be a token id below"):
        TextConfig(width=64, layers=1, activation="gelu", vocab_size=600, end_of_text=end)


# What transformers' configs say. 2 was written by mistake once, and means the highest id since.
@pytest.mark.parametrize(
    ("stated", "vocab_size", "expected"),
    [
        ({"eos_token_id": 49407}, 49409, 49407),
        ({}, 49409, 49407),
        ({"eos_token_id": 49407}, 49408, None),
        ({}, 49408, None),
        ({"eos_token_id": 2}, 49409, None),
        ({"eos_token_id": None}, 49409, None),
        ({}, 600, None),
        ({"eos_token_id": 7}, 600, 7),
    ],
)
def test_transformers_configs(stated: dict[str, Any], vocab_size: int, expected: Any) -> None:
    text = {"vocab_size": vocab_size, **stated}
    config = from_transformers({"vision_config": {}, "text_config": text})
    assert config.text.end_of_text == expected


def test_an_end_outside_of_the_vocabulary_is_told(caplog: pytest.LogCaptureFixture) -> None:
    text = {"vocab_size": 600, "eos_token_id": 49407}
    with caplog.at_level(logging.WARNING, "clipkit"):
        config = from_transformers({"vision_config": {}, "text_config": text})
    assert config.text.end_of_text is None
    assert "eos_token_id is 49407, and there are 600 tokens" in caplog.text


def test_open_clip_configs() -> None:
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    text = {"width": 64, "heads": 1, "layers": 1, "vocab_size": 49500, "eos_id": 49407}
    values = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}
    assert from_open_clip(values).text.end_of_text is None
    text["pool_type"] = "eos"  # pyright: ignore[reportArgumentType]
    assert from_open_clip(values).text.end_of_text == 49407


# The tokenizer.


def test_added_tokens_come_before_the_merges() -> None:
    plain = tokenizer_with({})
    added = tokenizer_with({**ADDED, "<cat>s": 700})
    assert added.vocab_size == 701
    assert added.eot_token == plain.eot_token == END
    a, on = plain.encode("a"), plain.encode("on")
    assert added.encode("a <cat> on") == [*a, 600, *on]
    assert added.encode("a<CAT>on") == [*a, 600, *on]
    assert added.encode("<cat>s<cat>") == [700, 600]  # the longest counts
    assert added.encode("no cats") == plain.encode("no cats")
    rows = added(["a <cat>", "a"], context_length=6).tolist()
    assert rows == [[598, *a, 600, END, 0, 0], [598, *a, END, 0, 0, 0]]
    assert added(["<cat> " * 9], context_length=4, truncate=True).tolist() == [[598, 600, 600, END]]
    assert added.count("<cat> <dog>") == 4
    assert added.decode(rows[0]) == "a <cat>"
    with pytest.raises(TokenizerError, match="token id 650 is outside the vocabulary"):
        added.decode([650])


def test_exact_tokens_are_found_in_their_own_case() -> None:
    tokenizer = tokenizer_with({"<Cat>": 600}, exact=("<Cat>",))
    assert tokenizer.encode("<Cat>") == [600]
    assert 600 not in tokenizer.encode("<cat>")
    assert tokenizer_with({"<Cat>": 600}).encode("<cat>") == [600]


def test_tokenizers_with_added_tokens_are_compared_and_copied() -> None:
    import copy
    import pickle

    added = tokenizer_with(ADDED)
    assert added != tokenizer_with({})
    assert added != tokenizer_with(ADDED, exact=("<cat>",))
    for twin in (pickle.loads(pickle.dumps(added)), copy.deepcopy(added)):
        assert twin == added
        assert twin(TEXTS).equal(added(TEXTS))
    assert not Tokenizer(added_tokens={"<cat>": 49408}).is_default
    assert len(pickle.dumps(Tokenizer(added_tokens={"<cat>": 49408}))) < 300


@pytest.mark.parametrize(
    ("added", "reason"),
    [
        (5, "must map texts to ids"),
        (["<cat>"], "must map texts to ids"),
        ({5: 600}, "an added token must be a text"),
        ({" ": 600}, "an added token must be a text"),
        ({"<|endoftext|>": 600}, "an added token must be a text of its own"),
        ({"<cat>": 599}, "must be an integer from 600 on"),
        ({"<cat>": "600"}, "must be an integer from 600 on"),
        ({"<cat>": True}, "must be an integer from 600 on"),
        ({"<cat>": 600, "<dog>": 600}, "two added tokens have one id"),
        ({"<cat>": 600, "<CAT>": 601}, "differ in case or spaces alone"),
    ],
)
def test_what_cannot_be_added_is_refused(added: Any, reason: str) -> None:
    with pytest.raises(TokenizerError, match=reason):
        tokenizer_with(added)


@pytest.mark.parametrize("exact", ["<cat>", 5, ["<dog>"], [5]])
def test_exact_tokens_are_added_tokens(exact: Any) -> None:
    with pytest.raises(TokenizerError, match="exact_tokens"):
        Tokenizer([], added_tokens={"<cat>": 514}, exact_tokens=exact)


# Folders of transformers.


@pytest.fixture
def folder(model: CLIP, tmp_path: Path) -> Path:
    """Write a folder as transformers does, and no word about added tokens."""
    model.save_pretrained(tmp_path, layout="transformers")
    (tmp_path / "added_tokens.json").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    return tmp_path


def write(folder: Path, name: str, values: Any) -> None:
    (folder / name).write_text(json.dumps(values), "utf-8")


def described(**others: Any) -> list[dict[str, Any]]:
    return [{"id": i, "content": text, **others} for text, i in ADDED.items()]


def test_added_tokens_of_any_of_transformers_files_are_read(folder: Path, model: CLIP) -> None:
    contents: dict[str, Any] = {
        "added_tokens.json": ADDED,
        "tokenizer.json": {"added_tokens": described(normalized=True), "model": {}},
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                str(i): {"content": text, "normalized": True} for text, i in ADDED.items()
            }
        },
    }
    for name, values in contents.items():
        write(folder, name, values)
        assert CLIP.from_pretrained(folder, device="cpu").tokenizer == model.tokenizer, name
        (folder / name).unlink()


def test_special_tokens_are_found_in_their_own_case(folder: Path) -> None:
    exact = tokenizer_with(ADDED, exact=("<cat>", "<dog>"))
    write(folder, "tokenizer.json", {"added_tokens": described(normalized=False)})
    assert CLIP.from_pretrained(folder, device="cpu").tokenizer == exact
    (folder / "tokenizer.json").unlink()
    write(folder, "added_tokens.json", ADDED)
    names = {"additional_special_tokens": ["<cat>", {"content": "<dog>"}], "pad_token": "!"}
    write(folder, "special_tokens_map.json", names)
    assert CLIP.from_pretrained(folder, device="cpu").tokenizer == exact
    (folder / "added_tokens.json").unlink()  # then they have the next ids
    assert CLIP.from_pretrained(folder, device="cpu").tokenizer == exact


def test_merges_are_read_from_tokenizer_json_where_there_is_no_other(
    folder: Path, model: CLIP
) -> None:
    pairs = [merge.split(" ") for merge in model.tokenizer.merges]
    (folder / "merges.txt").unlink()
    write(folder, "tokenizer.json", {"added_tokens": described(), "model": {"merges": pairs}})
    assert CLIP.from_pretrained(folder, device="cpu").tokenizer == model.tokenizer


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("tokenizer.json", {"added_tokens": 5}, "has no tokenizer of CLIP's kind"),
        ("tokenizer.json", {"added_tokens": [5]}, "has no tokenizer of CLIP's kind"),
        ("tokenizer.json", {"added_tokens": [{"id": 600}]}, "has no tokenizer of CLIP's kind"),
        ("tokenizer.json", {"added_tokens": described(single_word=True)}, "single_word"),
        ("tokenizer.json", {"model": {"merges": [[1]]}}, "has no tokenizer of CLIP's kind"),
        ("added_tokens.json", {"<cat>": "x"}, "has no tokenizer of CLIP's kind"),
        ("added_tokens.json", {"<|endoftext|>": 3}, "in another order"),
        ("added_tokens.json", [1], "must hold a JSON object"),
        ("tokenizer_config.json", {"added_tokens_decoder": 3}, "has no tokenizer of CLIP's kind"),
    ],
)
def test_damaged_tokenizers_are_told(folder: Path, name: str, values: Any, reason: str) -> None:
    write(folder, name, values)
    with pytest.raises(CorruptCheckpointError, match=reason):
        clipkit.load(folder, device="cpu")
    given = tokenizer_with(ADDED)  # the way on that the message names
    assert clipkit.load(folder, device="cpu", tokenizer=given)[0].tokenizer is given


def test_more_tokens_than_the_tokenizer_knows_are_an_error_with_a_way_on(folder: Path) -> None:
    with pytest.raises(
        ConfigError, match="knows the ids 0 to 599.*602 tokens.*tokenizer="
    ) as error:
        clipkit.load(folder, device="cpu")
    assert "merges.txt" in str(error.value)
    for added in ({}, ADDED):
        tokenizer = tokenizer_with(added)
        model = CLIP.from_pretrained(folder, device="cpu", tokenizer=tokenizer)
        assert model.tokenizer is tokenizer
        assert model.embed_texts(["dog"]).shape == (1, 32)


def test_a_model_of_clips_own_table_with_more_tokens_asks_when_it_has_to_know() -> None:
    model = random_clip(config_with(49410, 49407))
    with pytest.raises(ConfigError, match=r"49,410 tokens.*added_tokens=\{'<cat>': 49408\}"):
        model.embed_texts(["a cat"])
    tokenizer = Tokenizer(None, 16, {"<cat>": 49408})
    assert CLIP(model.config, tokenizer).embed_texts(["a <cat>"]).shape == (1, 32)


@pytest.mark.parametrize(
    ("tokenizer", "reason"),
    [
        (tokenizer_with({"<cat>": 700}), "has 701 tokens, and the model 602"),
        (Tokenizer(default_merges()[:80], 16), "ends texts with the id 593.*at 599"),
        (Tokenizer(default_merges()[:86]), "rows of 77 tokens, and the model takes 16"),
        ("merges.txt", "a model's tokenizer is a clipkit.Tokenizer, not 'merges.txt'"),
    ],
)
def test_a_tokenizer_of_another_model_is_refused(tokenizer: Any, reason: str, model: CLIP) -> None:
    with pytest.raises(ConfigError, match=reason):
        check_tokenizer(tokenizer, model.config.text)
    with pytest.raises(ConfigError, match=reason):
        CLIP(model.config, tokenizer)


def test_gaps_between_ids_cannot_be_said_to_transformers(tmp_path: Path) -> None:
    model = random_clip(config_with(602, END), tokenizer_with({"<cat>": 601}))
    with pytest.raises(ConfigError, match="numbers added tokens from 600 on without a gap"):
        model.save_pretrained(tmp_path, layout="transformers")
    model.save_pretrained(tmp_path)
    assert CLIP.from_pretrained(tmp_path, device="cpu").tokenizer == model.tokenizer


def test_the_highest_id_is_said_to_transformers_as_it_understands(tmp_path: Path) -> None:
    """With added tokens and no `end_of_text`, as in files that are older than transformers 4.32."""
    model = random_clip(config_with(602, None), tokenizer_with(ADDED))
    model.save_pretrained(tmp_path, layout="transformers")
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["text_config"]["eos_token_id"] == 2
    assert values["text_config"]["pad_token_id"] == END
    assert CLIP.from_pretrained(tmp_path, device="cpu").config == model.config


def test_padding_is_the_end_of_text_for_transformers(tmp_path: Path, vit: CLIP) -> None:
    """Another id would be no error there, and would change nothing but what follows the end."""
    model = CLIP(vit.config, tokenizer_with({}))
    model.save_pretrained(tmp_path, layout="transformers")
    text = json.loads((tmp_path / "config.json").read_text())["text_config"]
    assert [text[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [598, 599, 599]


@pytest.mark.parametrize("layout", ["clipkit", "transformers"])
def test_tokens_that_count_in_their_own_case_are_saved_so(
    layout: FolderLayout, tmp_path: Path
) -> None:
    tokenizer = tokenizer_with({"<Cat>": 600, "<dog>": 601}, exact=("<Cat>",))
    random_clip(config_with(602, END), tokenizer).save_pretrained(tmp_path, layout=layout)
    assert CLIP.from_pretrained(tmp_path, device="cpu").tokenizer == tokenizer


@pytest.mark.parametrize("name", ["width", "layers", "vocab_size", "context_length", "mlp_ratio"])
def test_sizes_without_end_are_refused_by_the_config(name: str) -> None:
    sizes: dict[str, Any] = {"width": 64, "layers": 1, name: 2**40}
    with pytest.raises(ConfigError, match="at most|a width above 16,777,216"):
        TextConfig(**sizes, activation="gelu")
