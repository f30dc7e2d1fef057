"""Test that models survive copies, pickles and files, and move between clipkit.openai and clipkit.

The features of both libraries agree to 1e-5 from the same file.
"""

import copy
import io
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

import clipkit
import clipkit.openai as clip
from clipkit.checkpoints.layouts import from_canonical, to_canonical
from clipkit.checkpoints.save import FolderLayout
from clipkit.openai.build import config_of
from clipkit.openai.model import CLIP, build_model
from tests.helpers.models import assert_same_weights
from tests.helpers.random_weights import assert_distinct
from tests.openai.small import images_for, some_ids


@torch.no_grad()
def features_of(model: CLIP | clipkit.CLIP, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return unit features of images and of three rows of tokens, float32."""
    found = model.encode_image(images), model.encode_text(some_ids())
    images_found, texts_found = (torch.nn.functional.normalize(one.float()) for one in found)
    return images_found, texts_found


def assert_alike(one: CLIP | clipkit.CLIP, other: CLIP | clipkit.CLIP, images: Tensor) -> None:
    """Fail unless two models of either library have the same features to 1e-5."""
    pairs = zip(features_of(one, images), features_of(other, images), strict=True)
    for found, expected in pairs:
        assert_distinct(expected)
        assert float((found - expected).abs().max()) < 1e-5


def test_a_copy_is_the_same_and_apart(model: CLIP) -> None:
    copied = copy.deepcopy(model)
    assert_same_weights(copied.state_dict(), model.state_dict())
    images = images_for(model)
    assert torch.equal(features_of(copied, images)[0], features_of(model, images)[0])
    with torch.no_grad():
        copied.text_projection.zero_()
    assert model.text_projection.abs().sum() > 0


def test_a_pickled_model_is_the_same(model: CLIP) -> None:
    read: CLIP = pickle.loads(pickle.dumps(model))
    images = images_for(model)
    assert torch.equal(features_of(read, images)[1], features_of(model, images)[1])


def test_a_model_saved_whole_is_the_same(model: CLIP) -> None:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    read = torch.load(buffer, weights_only=False)
    assert_same_weights(read.state_dict(), model.state_dict())


def test_a_state_dict_makes_the_same_model(model: CLIP) -> None:
    read = build_model(model.state_dict()).float()
    assert not read.load_state_dict(model.state_dict()).missing_keys
    assert_same_weights(read.state_dict(), model.state_dict())


def twin(model: CLIP) -> clipkit.CLIP:
    """Return clipkit's own model of the same weights, which are renamed."""
    weights = to_canonical(model.state_dict())
    other = clipkit.CLIP(config_of(weights))
    other.load_state_dict(weights)
    return other.eval()


def test_weights_go_to_clipkit_and_back(model: CLIP) -> None:
    other = twin(model)
    assert_alike(model, other, images_for(model))
    back = build_model(model.state_dict()).float()
    back.load_state_dict(from_canonical(other.state_dict(), "openai"))
    assert_same_weights(back.state_dict(), model.state_dict())


def test_clipkits_own_model_takes_the_state_dict_as_it_is(model: CLIP) -> None:
    other = clipkit.CLIP(config_of(to_canonical(model.state_dict()))).eval()
    other.load_state_dict(model.state_dict())
    assert_alike(model, other, images_for(model))


def test_both_libraries_read_a_half_file_of_clipkit_openai_alike(
    model: CLIP, tmp_path: Path
) -> None:
    path = tmp_path / "half.pt"
    torch.save(build_model(model.state_dict()).state_dict(), path)
    ours, _ = clip.load(path, "cpu")
    other, _ = clipkit.load(path, "cpu", activation="quick_gelu", head_width=64)
    assert_alike(ours, other, images_for(model))


@pytest.mark.parametrize("layout", ["clipkit", "open_clip"])
def test_both_libraries_read_a_folder_of_clipkit_alike(
    layout: FolderLayout, model: CLIP, tmp_path: Path
) -> None:
    twin(model).save_pretrained(tmp_path, layout=layout)
    ours, _ = clip.load(tmp_path, "cpu")
    other, _ = clipkit.load(tmp_path, "cpu")
    assert_alike(ours, other, images_for(model))
    assert_same_weights(ours.state_dict(), model.state_dict())


def test_both_libraries_read_a_folder_of_transformers_alike(vit: CLIP, tmp_path: Path) -> None:
    other = twin(vit)
    other.tokenizer = clipkit.Tokenizer(clipkit.Tokenizer().merges[:86], 16)
    other.save_pretrained(tmp_path, layout="transformers")
    for name in ("merges.txt", "tokenizer_config.json", "vocab.json", "special_tokens_map.json"):
        (tmp_path / name).unlink(missing_ok=True)
    ours, _ = clip.load(tmp_path, "cpu")
    again, _ = clipkit.load(tmp_path, "cpu")
    assert_alike(ours, again, images_for(vit))
