"""Arguments of a wrong type end in an error that names the value and the way on (kinds C, D)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import clipkit
from clipkit import CLIP, ImageClassifier
from clipkit.checkpoints.embedded import EMBEDDED
from clipkit.encode import embed
from clipkit.errors import (
    ClipkitError,
    ConfigError,
    DataError,
    DownloadError,
    ImageError,
    OutputError,
    TokenizerError,
    UnknownModelError,
)

TINY_IMAGE = Image.new("RGB", (9, 7))
LONG = "word " * 2000


@pytest.fixture(scope="module")
def tiny() -> CLIP:
    return CLIP.from_pretrained("tiny", device="cpu")


# Kind D: what the encoders are given.


@pytest.mark.parametrize("text", [["a cat"], "a cat", None, 5, np.zeros((1, 77), np.int64), b"a"])
def test_texts_are_no_token_ids(vit: CLIP, text: Any) -> None:
    with pytest.raises(
        TokenizerError, match=r"not \w+ .*model\.embed_texts.*takes texts.*model\.tokenizer"
    ):
        vit.encode_text(text)
    with pytest.raises(TokenizerError, match=r"model\.embed_texts"):
        vit(torch.zeros(1, 3, 48, 48), text)


@pytest.mark.parametrize(
    "image",
    [
        TINY_IMAGE,
        "a.jpg",
        Path("a.jpg"),
        [torch.zeros(3, 48, 48)],
        np.zeros((1, 3, 48, 48)),
        None,
        5,
    ],
)
def test_images_are_no_tensors(vit: CLIP, image: Any) -> None:
    with pytest.raises(
        ImageError, match=r"not \w+ .*model\.embed_images.*takes paths and images.*preprocess"
    ):
        vit.encode_image(image)
    with pytest.raises(ImageError, match=r"model\.embed_images"):
        vit(image, torch.zeros(1, 16, dtype=torch.int64))


@pytest.mark.parametrize(
    "tokens",
    [
        torch.zeros(1, 16),
        torch.zeros(16, dtype=torch.int64),
        torch.zeros(1, 17, dtype=torch.int64),
        torch.zeros(1, 1, 16, dtype=torch.int64),
    ],
)
def test_token_ids_of_another_form_name_theirs(vit: CLIP, tokens: torch.Tensor) -> None:
    shape = str(tuple(tokens.shape)).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(TokenizerError, match=f"not {tokens.dtype} of {shape}: make them with"):
        vit.encode_text(tokens)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(1, 3, 48, 48, dtype=torch.uint8),
        torch.zeros(1, 1, 48, 48),
        torch.zeros(3, 48, 48),
        torch.zeros(1, 48, 48, 3),
        torch.zeros(1, 3, 32, 32),
    ],
)
def test_tensors_of_images_of_another_form_name_theirs(vit: CLIP, images: torch.Tensor) -> None:
    shape = str(tuple(images.shape)).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ImageError, match=f"not {images.dtype} of {shape}: pass images through"):
        vit.encode_image(images)


# Kind D: what `load` is given.


@pytest.mark.parametrize("name", [None, 5, 1.5, b"tiny", ["tiny"], True])
def test_a_model_is_named_by_a_string_or_a_path(name: Any) -> None:
    with pytest.raises(UnknownModelError, match=r"by a string or a path, not \w+ .*list_models"):
        clipkit.load(name)


def test_a_revision_of_what_lies_here_is_refused(tmp_path: Path) -> None:
    """It was ignored."""
    for name in ("tiny", EMBEDDED):
        with pytest.raises(ConfigError, match="revision='v2' is of hub .* lies here: leave it out"):
            CLIP.from_pretrained(name, revision="v2")
    with pytest.raises(ConfigError, match="revision='v2' is of hub .* lies here: leave it out"):
        ImageClassifier.load(tmp_path, revision="v2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": 5}, "config must be a CLIPConfig or the published name .*, not 5"),
        ({"config": Path("ViT-B-32")}, "config must be a CLIPConfig .*ViT-B-32"),
        ({"config": "ViT-B-33"}, "'ViT-B-33' is no published model"),
        ({"activation": "relu"}, "activation must be one of .*, not 'relu'"),
        ({"activation": 5}, "activation must be one of .*, not 5"),
        ({"head_width": "64"}, "head_width must be a positive integer, not '64'"),
        ({"head_width": 0}, "head_width must be a positive integer, not 0"),
        ({"resolution": "big"}, "resolution must be .*, not 'big'"),
        ({"resolution": -32}, "resolution must be .*, not .-32"),
        ({"resolution": 33.5}, "resolution must be .*, not 33.5"),
        ({"resolution": (32, 32, 32)}, "resolution must be .*, not .32, 32, 32"),
        ({"resolution": 10**9}, "resolution must be at most 65,536 pixels a side, not"),
        ({"resolution": True}, "resolution must be .*True"),
        ({"preprocess": 5}, "a function of an image, not 5"),
        ({"tokenizer": "merges.txt"}, "a clipkit.Tokenizer, not 'merges.txt'"),
        ({"revision": 5}, "revision must be a branch, tag or commit, not 5"),
        ({"cache_dir": 5}, "cache_dir must be the path of a folder, not 5"),
        ({"token": 5}, "token must be a string or a bool, not of type int"),
        ({"device": "gpu"}, "there is no device 'gpu' here"),
        ({"device": 1.5}, "there is no device '1.5' here"),
        ({"dtype": "float16"}, "dtype must be torch.float32, .*, not 'float16'"),
        ({"dtype": torch.int64}, "dtype must be torch.float32, .*, not torch.int64"),
        ({"dtype": torch.float8_e4m3fn}, "dtype must be torch.float32, .*, not torch.float8"),
        ({"device": []}, r"there is no device '\[\]' here"),
        ({"jit": True}, "jit=True asks for TorchScript"),
    ],
)
def test_options_of_load_are_checked(
    options: dict[str, Any], message: str, vit: CLIP, tmp_path: Path
) -> None:
    torch.save(vit.state_dict(), tmp_path / "bare.pt")
    own: dict[str, Any] = {"device": "cpu"}
    if options.keys() & {"activation", "head_width"}:
        own |= {"activation": "gelu", "head_width": 32}
    else:
        own |= {"config": vit.config}
    with pytest.raises(ClipkitError, match=message):
        clipkit.load(tmp_path / "bare.pt", **(own | options))


@pytest.mark.parametrize(
    ("name", "tag"), [("tiny", "openai"), ("ViT-B-32", "x"), (5, "openai"), ("ViT-B-32", 5)]
)
def test_a_tag_that_nothing_has_is_named(name: Any, tag: Any) -> None:
    with pytest.raises(ConfigError, match=f"pretrained={tag!r} is no tag of {name!r}"):
        clipkit.load(name, pretrained=tag)


def test_a_tag_is_that_of_a_published_name(tmp_path: Path) -> None:
    for tag, repo in (
        ("openai", "timm/vit_base_patch32_clip_224.openai"),
        ("laion2b_s34b_b79k", "laion"),
    ):
        with pytest.raises(DownloadError, match=f"cache gave {repo}"):
            clipkit.load("ViT-B-32", pretrained=tag, cache_dir=tmp_path, local_files_only=True)


def test_a_keyword_that_nothing_knows_is_an_error_of_load() -> None:
    load: Any = clipkit.load
    with pytest.raises(TypeError, match=r"^load\(\) got an unexpected keyword argument 'weights'"):
        load("tiny", weights="openai")


# Kind D: many images.


@pytest.mark.parametrize("value", [None, "4", 2.5, True, 0, -1, [4]])
def test_a_batch_size_is_a_positive_integer(tiny: CLIP, value: Any) -> None:
    with pytest.raises(ConfigError, match="batch_size must be an integer from 1 on, not") as error:
        tiny.embed_images([TINY_IMAGE], batch_size=value)
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("value", [None, "4", 2.5, True, -1])
def test_the_number_of_workers_is_an_integer(tiny: CLIP, value: Any) -> None:
    with pytest.raises(ConfigError, match="workers must be an integer from 0 on, not") as error:
        tiny.embed_images([TINY_IMAGE], workers=value)
    assert repr(value) in str(error.value)


def test_integers_of_numpy_are_integers(tiny: CLIP) -> None:
    count: Any = np.int64(2)
    assert len(tiny.embed_images([TINY_IMAGE] * 3, batch_size=count)) == 3


@pytest.mark.parametrize("item", [None, 5, object(), np.zeros((4, 4, 3)), {"a": 1}])
def test_what_is_no_image_is_named_by_its_position(tiny: CLIP, item: Any) -> None:
    with pytest.raises((ImageError, DataError), match="image 1: |a mapping must have its image"):
        tiny.embed_images([TINY_IMAGE, item])


# Kind C: many texts, in whatever holds them.


def test_texts_come_in_the_order_in_which_they_are_iterated(tiny: CLIP) -> None:
    texts = [f"a photo of {i} dogs" for i in range(6)]
    expected = tiny.embed_texts(texts)
    by_text = dict(enumerate(texts))
    for given in (
        tuple(texts),
        (text for text in texts),
        by_text.values(),
        dict.fromkeys(texts).keys(),
        np.array(texts),
        np.array(texts, object),
    ):
        assert torch.equal(tiny.embed_texts(given), expected)
    several = tiny.embed_texts(set(texts))
    assert several.shape == expected.shape
    assert torch.isclose(several.sum(), expected.sum(), atol=1e-4)


def test_columns_of_tables_come_in_the_order_of_their_rows(tiny: CLIP) -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"text": ["a", "b", "c", "d"]}).iloc[[2, 0, 3, 1]]
    assert torch.equal(tiny.embed_texts(table.text), tiny.embed_texts(["c", "a", "d", "b"]))
    with pytest.raises(TokenizerError, match="of a table one column|one column"):
        tiny.embed_texts(table)


def test_a_long_text_stays_one_text(tiny: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed, "TEXT_BATCH", 3)
    assert len(tiny.embed_texts([LONG], truncate=True)) == 1
    assert len(tiny.embed_texts([LONG] * 7, truncate=True)) == 7
    with pytest.raises(ConfigError, match=r"A single one goes in it: \['word .*\.\.\.'\]") as error:
        tiny.embed_texts(LONG, truncate=True)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("wrong", [None, 5, b"cat", float("nan"), ["cat"], np.bytes_(b"cat")])
def test_what_is_no_text_is_named_by_its_position(tiny: CLIP, wrong: Any) -> None:
    kind = type(wrong).__name__
    with pytest.raises(TokenizerError, match=f"must be a string, not {kind} .*at position 1"):
        tiny.embed_texts(["dog", wrong])


@pytest.mark.parametrize("wrong", [None, 5, b"cat", {"cat": 1}, torch.tensor(5), np.array(5)])
def test_what_holds_no_texts_is_refused(tiny: CLIP, wrong: Any) -> None:
    with pytest.raises(TokenizerError, match="texts must be a string or strings, not"):
        tiny.embed_texts(wrong)


@pytest.mark.parametrize("none", [[], (), set[str](), np.array([], str)])
def test_no_text_at_all_is_refused(tiny: CLIP, none: Any) -> None:
    with pytest.raises(ConfigError, match="needs at least one text, and there is none"):
        tiny.embed_texts(none)


# Kind D: models, folders and rows of ids.


@pytest.mark.parametrize("config", ["ViT-B/32", None, {"embed_dim": 8}, 5])
def test_a_model_is_built_from_a_config(config: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"built from a clipkit.CLIPConfig, not .*from_pretrained"
    ):
        CLIP(config)


@pytest.mark.parametrize("folder", [None, 5, ["folder"], b"folder"])
def test_a_folder_to_save_in_is_a_path(vit: CLIP, folder: Any) -> None:
    with pytest.raises(ConfigError, match="a model is saved in a folder, by its path, not"):
        vit.save_pretrained(folder)


def test_an_empty_text_is_no_folder_to_save_in(
    vit: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="it is no path"):
        vit.save_pretrained("")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ids", [None, 5, "a cat", torch.tensor(5), [None], [1.5], [[320]]])
def test_what_is_no_row_of_ids_is_not_decoded(tiny: CLIP, ids: Any) -> None:
    with pytest.raises(TokenizerError, match="decode needs one row of integer ids"):
        tiny.tokenizer.decode(ids)
