"""Remedies can be taken where they are shown, and messages say what is wrong (kind S)."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import clipkit
from clipkit import CLIP, CLIPConfig
from clipkit.errors import (
    CheckpointNotFoundError,
    ClipkitError,
    ConfigError,
    DataError,
    ImageError,
    StateDictMismatchError,
    UnsupportedCheckpointError,
)
from tests.helpers.models import RESNET, VIT, random_clip


@pytest.fixture(scope="module")
def tiny() -> CLIP:
    return CLIP.from_pretrained("tiny", device="cpu")


def message_of(call: Callable[[], object]) -> str:
    with pytest.raises(ClipkitError, match=".") as caught:
        call()
    return str(caught.value)


# Kind S4: what does not exist is said not to exist, and sound values are not listed.


@pytest.mark.parametrize("name", ["no_such_folder", "photos/a.jpg", "./a"])
def test_what_does_not_exist_is_said_not_to_exist(tiny: CLIP, name: str) -> None:
    with pytest.raises(DataError, match="there is no folder or file '.*': check its spelling"):
        tiny.embed_images(name)
    with pytest.raises(ImageError, match="cannot find the image at the path"):
        tiny.embed_images([name])
    with pytest.raises(CheckpointNotFoundError, match="there is no file or folder"):
        clipkit.load(Path(name))


def test_no_images_are_said_without_other_arguments(tiny: CLIP, tmp_path: Path) -> None:
    for none in ([], tmp_path):
        with pytest.raises(ConfigError, match="at least one image, and there is none in") as caught:
            tiny.embed_images(none)
        # The folder's own name may hold any digits.
        message = str(caught.value).replace(str(tmp_path), "FOLDER")
        assert "64" not in message
        assert "workers" not in message


def test_a_folder_among_images_and_an_address_are_named(tiny: CLIP, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="it is a folder, which stands by itself"):
        tiny.embed_images([str(tmp_path)])
    with pytest.raises(ImageError, match="Download it first, and pass its path or its bytes"):
        tiny.embed_images(["https://host/cat.jpg"])


# What is sound is not to be deleted.


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "bmp", "webp", "tiff", "avif"])
def test_an_image_in_place_of_a_model_is_named(kind: str, tmp_path: Path) -> None:
    for name in (f"photo.{kind}", "model.pt", "model.safetensors"):
        Image.new("RGB", (9, 9), "red").save(tmp_path / name, kind)
        with pytest.raises(UnsupportedCheckpointError, match=r"is an image \(.*embed_images"):
            clipkit.load(tmp_path / name)


@pytest.mark.parametrize("content", [b"a text", b"name,label\na.jpg,cat\n", bytes(200), b"{}"])
def test_files_of_no_known_kind_are_not_to_be_deleted(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "notes.pt").write_bytes(content)
    message = message_of(lambda: clipkit.load(tmp_path / "notes.pt"))
    if content != b"{}":
        assert "Delete" not in message
        assert "Pass the path of a weight file" in message
    assert message.count(str(tmp_path)) == 1


def test_other_models_in_a_folder_are_named(tmp_path: Path) -> None:
    for name in ("flax_model.msgpack", "model.onnx", "tf_model.h5"):
        (tmp_path / name).touch()
    with pytest.raises(
        CheckpointNotFoundError,
        match=r"no weight file \(flax_model.msgpack is a Flax checkpoint, model.onnx is an ONNX",
    ):
        clipkit.load(tmp_path)


# Paths are said once.


def damaged(folder: Path) -> dict[str, Path]:
    """Write files that are broken in several ways."""
    torch.save(random_clip(VIT).state_dict(), folder / "whole.pt")
    content = (folder / "whole.pt").read_bytes()
    files = {
        "cut.pt": content[:-500],
        "garbage.pt": b"\x80\x02" + bytes(100),
        "empty.pt": b"",
        "cut.safetensors": b"\x10\0\0\0\0\0\0\0{",
    }
    for name, written in files.items():
        (folder / name).write_bytes(written)
    return {name: folder / name for name in files}


def test_messages_have_the_path_of_a_checkpoint_once(tmp_path: Path) -> None:
    for path in damaged(tmp_path).values():
        message = message_of(lambda path=path: clipkit.load(path, config=VIT, device="cpu"))
        assert message.count(str(path)) == 1
    message = message_of(lambda: clipkit.load(tmp_path / "whole.pt", config=RESNET, device="cpu"))
    assert message.count("whole.pt") == 1


@pytest.mark.parametrize("content", [b"junk", b"", b"\x89PNG\r\n\x1a\n junk", b"\xff\xd8\xff junk"])
def test_messages_have_the_path_of_an_image_once(
    content: bytes, tiny: CLIP, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(content)
    message = message_of(lambda: tiny.embed_images([str(tmp_path / "a.png")]))
    assert message.count("a.png") == 1
    ((_, problem),) = clipkit.extract_features(
        tiny, [str(tmp_path / "a.png"), Image.new("RGB", (4, 4))]
    ).skipped
    assert problem.count("a.png") == 1


# Other numbers of layers explain all that follows.


def with_layers(config: CLIPConfig, vision: Any, text: int) -> CLIPConfig:
    return replace(
        config,
        vision=replace(config.vision, layers=vision),
        text=replace(config.text, layers=text),
    )


@pytest.mark.parametrize(
    ("saved", "asked", "reasons"),
    [
        (VIT, with_layers(VIT, 3, 2), ["the image tower has 2 layers, the model 3"]),
        (
            VIT,
            with_layers(VIT, 1, 5),
            [
                "the image tower has 2 layers, the model 1",
                "the text tower has 2 layers, the model 5",
            ],
        ),
        (
            RESNET,
            with_layers(RESNET, (1, 3, 1, 1), 2),
            ["stage 2 of the image tower has 2 layers, the model 3"],
        ),
        (RESNET, VIT, ["the image tower is a ResNet, the model's a ViT"]),
    ],
)
def test_other_depths_are_said_first(
    saved: CLIPConfig, asked: CLIPConfig, reasons: list[str], tmp_path: Path
) -> None:
    torch.save(random_clip(saved).state_dict(), tmp_path / "saved.pt")
    with pytest.raises(StateDictMismatchError, match="weights do not fit the model") as caught:
        clipkit.load(tmp_path / "saved.pt", config=asked, device="cpu")
    lines = str(caught.value).splitlines()
    assert lines[1 : 1 + len(reasons)] == [f"  ! {reason}" for reason in reasons]


def test_a_long_name_is_shortened() -> None:
    assert len(message_of(lambda: clipkit.load("x" * 100_000))) < 600


def test_a_pickle_of_another_protocol_says_so(tmp_path: Path) -> None:
    import pickle

    (tmp_path / "a.pt").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UnsupportedCheckpointError, match="a.pt is a pickle, and not of torch.save"):
        clipkit.load(tmp_path / "a.pt")
