"""Test the tokenizer's attributes, steps and ids."""

import gzip
from pathlib import Path

import pytest
import torch

import clipkit
import clipkit.openai as clip
from clipkit.errors import TokenizerError
from clipkit.openai import simple_tokenizer
from clipkit.openai.simple_tokenizer import SimpleTokenizer

# Ids of CLIP's vocabulary, as OpenAI's package gives them.
IDS = {
    "a photo of a dog": [320, 1125, 539, 320, 1929],
    "Hello,  World!\n": [3306, 267, 1002, 256],
    "it's 42 cats": [585, 568, 275, 273, 3989],
    "&amp;lt; fish &amp; chips": [283, 2759, 261, 8855],
    "": [],
}
TEXTS = [
    *IDS,
    "Ünïcödé naïveté — “quotes” … ﬁne",
    "日本語のテキスト and русский текст",
    "🐶🐱 emoji 👩‍👩‍👧 sequence",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "<|startoftext|>a<|endoftext|> b",
    "don't they're we've I'll he'd I'm",
    "x" * 200,
    "tabs\tand\r\nlines  \x00control",
]


@pytest.fixture(scope="module")
def tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer()


@pytest.mark.parametrize("text", IDS)
def test_encode_gives_the_published_ids(text: str, tokenizer: SimpleTokenizer) -> None:
    assert tokenizer.encode(text) == IDS[text]


@pytest.mark.parametrize("text", TEXTS)
def test_encode_gives_the_ids_of_clipkit(text: str, tokenizer: SimpleTokenizer) -> None:
    assert tokenizer.encode(text) == clipkit.Tokenizer().encode(text, allow_special=True)


def test_the_tables_are_openais(tokenizer: SimpleTokenizer) -> None:
    assert len(tokenizer.encoder) == 49408
    assert tokenizer.encoder["<|startoftext|>"] == 49406
    assert tokenizer.encoder["<|endoftext|>"] == 49407
    assert tokenizer.encoder["!"] == 0
    assert tokenizer.encoder["!</w>"] == 256
    assert tokenizer.decoder[1929] == "dog</w>"
    assert tokenizer.bpe_ranks["i", "n"] == 0
    assert len(tokenizer.bpe_ranks) == 48894
    assert tokenizer.byte_encoder[32] == "Ġ"
    assert tokenizer.byte_decoder["Ġ"] == 32
    assert tokenizer.cache["<|endoftext|>"] == "<|endoftext|>"


def test_the_pattern_cuts_words(tokenizer: SimpleTokenizer) -> None:
    words = tokenizer.pat.findall("it's <|endoftext|>42 cats!?")
    assert words == ["it", "'s", "<|endoftext|>", "4", "2", "cats", "!?"]


def test_bpe_joins_letters_and_remembers_the_word(tokenizer: SimpleTokenizer) -> None:
    assert tokenizer.bpe("xylophonist") == "xy lo ph onist</w>"
    assert tokenizer.cache["xylophonist"] == "xy lo ph onist</w>"
    assert tokenizer.bpe("q") == "q</w>"


def test_the_cache_and_the_vocabulary_can_be_changed() -> None:
    tokenizer = SimpleTokenizer()
    tokenizer.encoder["<cat>"] = 49408
    tokenizer.cache["cat"] = "<cat>"
    assert tokenizer.encode("a cat") == [320, 49408]


def test_decode_puts_a_space_behind_each_word(tokenizer: SimpleTokenizer) -> None:
    assert tokenizer.decode([320, 1125, 539, 320, 1929]) == "a photo of a dog "
    assert tokenizer.decode([49406, 320, 49407]) == "<|startoftext|>a <|endoftext|>"
    assert tokenizer.decode(tokenizer.encode("日本語")) == "日本語 "


def test_decode_takes_a_tensor(tokenizer: SimpleTokenizer) -> None:
    assert tokenizer.decode(clip.tokenize("a dog")[0, 1:3].tolist()) == "a dog "


def test_decode_refuses_ids_outside_the_vocabulary(tokenizer: SimpleTokenizer) -> None:
    with pytest.raises(TokenizerError, match=r"49408 is outside the vocabulary, 0 to 49407"):
        tokenizer.decode([49408])


def test_a_file_of_merges_gives_its_own_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "merges.gz"
    path.write_bytes(gzip.compress(b"#version: 0.2\nc a\nca t</w>"))
    tokenizer = SimpleTokenizer(str(path))
    assert len(tokenizer.encoder) == 516
    assert tokenizer.encode("cat") == [513]
    assert tokenizer.encoder["<|startoftext|>"] == 514


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "merges.txt"
    path.write_text("c a")
    with pytest.raises(TokenizerError, match=r"merges\.txt' is no gzipped file of merges"):
        SimpleTokenizer(str(path)).encode("cat")


def test_the_default_file_has_the_form_of_openais(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    simple_tokenizer.default_bpe.cache_clear()
    path = simple_tokenizer.default_bpe()
    simple_tokenizer.default_bpe.cache_clear()
    assert Path(path).parent == tmp_path / ".cache" / "clip"
    lines = gzip.decompress(Path(path).read_bytes()).decode("utf-8").split("\n")
    assert lines[0].startswith("#version")
    assert lines[1 : 49152 - 256 - 2 + 1] == list(clipkit.Tokenizer().merges)
    assert SimpleTokenizer(path).encode("a photo of a dog") == IDS["a photo of a dog"]


def test_the_functions_beside_the_class() -> None:
    assert simple_tokenizer.get_pairs("abca") == {("a", "b"), ("b", "c"), ("c", "a")}
    assert simple_tokenizer.basic_clean(" &amp;lt; caf\u0065\u0301 ") == "< café"
    assert simple_tokenizer.basic_clean("<b> &amp;lt;") == "<b> <"  # ftfy leaves it beside a tag
    assert simple_tokenizer.whitespace_clean(" a \n\t b ") == "a b"
    assert len(simple_tokenizer.bytes_to_unicode()) == 256


def test_tokenize_gives_rows_of_int32() -> None:
    tokens = clip.tokenize(["a dog", "hello world!"], 8)
    assert tokens.dtype == torch.int32
    assert tokens.tolist() == [
        [49406, 320, 1929, 49407, 0, 0, 0, 0],
        [49406, 3306, 1002, 256, 49407, 0, 0, 0],
    ]


def test_tokenize_gives_the_rows_of_clipkit() -> None:
    expected = clipkit.Tokenizer()(TEXTS, truncate=True, allow_special=True)
    assert torch.equal(clip.tokenize(TEXTS, truncate=True).long(), expected)


def test_one_string_makes_one_row() -> None:
    assert clip.tokenize("a dog").shape == (1, 77)


def test_no_text_makes_no_row() -> None:
    assert clip.tokenize([]).shape == (0, 77)


def test_a_text_that_is_too_long_is_a_runtime_error() -> None:
    with pytest.raises(RuntimeError, match="is too long for context length 77"):
        clip.tokenize("word " * 100)
    assert clip.tokenize("word " * 100, truncate=True)[0, [0, 75, 76]].tolist() == [
        49406,
        2653,
        49407,
    ]


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(TokenizerError, match="a text must be a string, not int 7, at position 1"):
        clip.tokenize(["a", 7])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("length", [1, 0, "77"])
def test_impossible_context_lengths_are_refused(length: int) -> None:
    with pytest.raises(TokenizerError, match=f"context_length.*{length}"):
        clip.tokenize("a dog", length)


def test_a_tokenizer_that_a_program_puts_in_place_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = SimpleTokenizer()
    tokenizer.cache["dog"] = "cat</w>"
    monkeypatch.setattr(clip.clip, "_tokenizer", tokenizer)
    assert clip.tokenize("a dog", 4).tolist() == [[49406, 320, 2368, 49407]]
