"""What the page about rclip says of its arithmetic, with rclip's own code where it is installed.

rclip's towers are files that it downloads. Here clipkit's towers stand in for them, so that rclip's
tokenizer, preprocessing and ranking are what is compared.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import clipkit
from clipkit.search import Index

QUERY = "2 * cat - rocket + photo1.png"  # as clipkit writes it
PLUS, MINUS = ["2:cat", "./photo1.png"], ["rocket"]  # as rclip does


class Session:
    """Stand in for a session of ONNX Runtime, by a tower of clipkit's.

    Args:
        encode: maps a batch to features (N, D).
    """

    def __init__(self, encode: Any) -> None:
        self.encode = encode

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(type="tensor(float)", name="input")]

    def run(self, _: Any, inputs: dict[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        (batch,) = inputs.values()
        with torch.no_grad():
            return [self.encode(torch.from_numpy(batch)).numpy()]


@pytest.fixture
def model() -> clipkit.CLIP:
    """Return a small model with rclip's size of images and width of features."""
    torch.manual_seed(0)
    vision = clipkit.ViTConfig(
        resolution=(256, 256), patch_size=32, width=64, layers=2, activation="gelu"
    )
    text = clipkit.TextConfig(width=64, layers=2, activation="gelu")
    return clipkit.CLIP(clipkit.CLIPConfig(embed_dim=512, vision=vision, text=text)).eval()


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make four photos in the current folder, and return their names."""
    monkeypatch.chdir(tmp_path)
    slope = Image.linear_gradient("L")
    for number in range(4):
        colors = [slope.rotate(90 * step * number) for step in (0, 1, 2)]
        Image.merge("RGB", colors).resize((300 + 40 * number, 280)).save(f"photo{number}.png")
    return [f"photo{number}.png" for number in range(4)]


def test_rclip_ranks_as_the_page_says(
    model: clipkit.CLIP, photos: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = pytest.importorskip("rclip.model")
    open_clip = pytest.importorskip("open_clip")
    vocabulary = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    download = module.model_download
    monkeypatch.setattr(download, "load_text_session", lambda: Session(model.encode_text))
    visual = Session(model.encode_image)
    monkeypatch.setattr(download, "load_visual_query_session", lambda: visual)
    monkeypatch.setattr(download, "use_coreml_for_visual_index", lambda: False)
    monkeypatch.setattr(download, "download_tokenizer_vocab", lambda: str(vocabulary))
    theirs: Any = module.Model()
    items = theirs.compute_image_features([Image.open(photo) for photo in photos])
    ours = model.embed_images(photos)
    assert np.abs(items - ours.numpy()).max() < 1e-5
    texts = theirs.compute_text_features(["a cat in jeans", "snow"])
    assert np.abs(texts - model.embed_texts(["a cat in jeans", "snow"]).numpy()).max() < 1e-5

    ranked = theirs.compute_similarities_to_text(items, PLUS, MINUS)
    results = Index.build(".", model).search(QUERY)
    assert results.paths == [photos[place] for _, place in ranked]
    cosines = np.array([result.cosine for result in results])
    scores = np.array([score for score, _ in ranked])
    ratio = scores / cosines  # the length of the sum, which rclip does not divide by
    assert np.ptp(ratio) < 0.01 * ratio.mean()
