"""A tower of int8 in OpenVINO is near the one in float32, and is known to be another."""

import copy
import importlib.util
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import clipkit
from clipkit import CLIP
from clipkit.encode.embed import prepare_batch
from clipkit.encode.fingerprints import fingerprint
from clipkit.errors import ConfigError, ExportError, ImageError
from clipkit.models import openvino_package, openvino_tower
from tests.helpers.alone import ALONE
from tests.helpers.towers import make_vit

# Without importing it, which every process of a test run would do.
IS_MISSING = importlib.util.find_spec("nncf") is None
pytestmark = [ALONE, pytest.mark.skipif(IS_MISSING, reason="needs nncf")]

ROOT = Path(__file__).parents[2]
PHOTOS = sorted((ROOT / "examples" / "photos").glob("*.jpg"))


@pytest.fixture(scope="module")
def tiny() -> CLIP:
    return CLIP.from_pretrained("tiny", device="cpu")


@pytest.fixture(scope="module")
def fast(tiny: CLIP) -> CLIP:
    """Return a copy of int8. Tests must not change it."""
    return tiny.optimize(runtime="openvino", calibration=PHOTOS)


def cosines(model: CLIP, other: CLIP, images: Tensor) -> Tensor:
    with torch.no_grad():
        return F.cosine_similarity(model.encode_image(images), other.encode_image(images))


def test_features_are_near_those_of_float32(tiny: CLIP, fast: CLIP) -> None:
    images = prepare_batch(tiny, PHOTOS, 300)
    found = cosines(tiny, fast, images)
    assert found.min() > 0.98
    assert found.max() < 1 - 1e-6  # in float32 it is 1 to 1e-7
    assert torch.equal(fast.encode_image(images), fast.encode_image(images))
    one = torch.cat([fast.encode_image(image) for image in images.split(1)])
    assert F.cosine_similarity(one, fast.encode_image(images)).min() > 0.999


def test_the_copy_says_how_near_it_is(tiny: CLIP, fast: CLIP) -> None:
    about = fast.optimizations[0]
    assert about.startswith("image tower in OpenVINO 20")
    mean = float(about.rpartition(" ")[2])
    found = cosines(tiny, fast, prepare_batch(tiny, PHOTOS, 300)).mean().item()
    assert f"int8 by {len(PHOTOS)} images, mean cosine " in about
    assert mean == pytest.approx(found, abs=1e-3)


def test_photos_are_classified_as_before(tiny: CLIP, fast: CLIP) -> None:
    names = ["cat", "cup of coffee", "rocket"]
    classifiers = [clipkit.ImageClassifier.zero_shot(model, names) for model in (tiny, fast)]
    expected, found = ([c.predict(path).top(1)[0][0] for path in PHOTOS] for c in classifiers)
    assert found == expected


@pytest.fixture(scope="module")
def vit() -> CLIP:
    """Return a small model whose images are tensors."""
    model = make_vit()
    model.preprocess = as_it_is
    return model


def as_it_is(image: Tensor) -> Tensor:
    return image


NOISE = torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def fast_vit(vit: CLIP) -> CLIP:
    return vit.optimize(runtime="openvino", calibration=NOISE)


def test_a_vision_transformer_is_quantized_too(vit: CLIP, fast_vit: CLIP) -> None:
    found = cosines(vit, fast_vit, NOISE)
    assert 0.95 < found.mean() < 1 - 1e-6  # 16 random numbers are rounded coarsely


def test_other_images_make_another_tower(vit: CLIP, fast_vit: CLIP) -> None:
    """Features of one are none of the other."""
    plain = vit.optimize(runtime="openvino")
    other = vit.optimize(runtime="openvino", calibration=NOISE[:1])
    known = {fingerprint(model.visual) for model in (vit, plain, fast_vit, other)}
    assert len(known) == 4


def test_pickled_copies_are_quantized_alike(fast_vit: CLIP) -> None:
    again = pickle.loads(pickle.dumps(fast_vit))
    assert fingerprint(again.visual) == fingerprint(fast_vit.visual)
    assert "int8 by 20 images" in again.optimizations[0]
    found = F.cosine_similarity(again.encode_image(NOISE), fast_vit.encode_image(NOISE))
    assert found.min() > 0.999


def test_copies_share_the_images(fast_vit: CLIP) -> None:
    """They are large, and needed only to pickle a copy."""
    assert copy.deepcopy(fast_vit).visual._runtime is fast_vit.visual._runtime
    assert not any(value.shape[1:] == (3, 32, 32) for value in fast_vit.buffers())


def test_every_so_manieth_image_is_taken(vit: CLIP) -> None:
    images = [torch.full((3, 32, 32), float(number)) for number in range(10)]
    for most, expected in ((300, range(10)), (10, range(10)), (9, range(0, 10, 2)), (1, [0])):
        found = prepare_batch(vit, images, most)
        assert found[:, 0, 0, 0].tolist() == list(map(float, expected))
        assert len(found) <= most


def test_broken_images_are_named(tiny: CLIP, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    with pytest.raises(ImageError, match="broken.jpg"):
        tiny.optimize(runtime="openvino", calibration=[PHOTOS[0], broken])
    with pytest.raises(ConfigError, match="at least one image"):
        tiny.optimize(runtime="openvino", calibration=[])


def test_torch_has_no_int8(vit: CLIP) -> None:
    """It is told before an image is read."""
    with pytest.raises(ConfigError, match='OpenVINO computes: add runtime="openvino"'):
        vit.optimize(calibration=["no such image.jpg"])


def test_images_of_another_size_are_refused(vit: CLIP) -> None:
    with pytest.raises(
        ImageError, match=r"optimize\(calibration=\) needs .* \(N, 3, 32, 32\), not"
    ):
        vit.optimize(runtime="openvino", calibration=torch.zeros(2, 3, 16, 16))


class Weighted(torch.nn.Module):
    """Prepare images by a weight, as a program's own preprocessing may."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, image: Tensor) -> Tensor:
        return self.weight * image


def test_a_preprocessing_may_have_weights(vit: CLIP) -> None:
    model = copy.copy(vit)
    model.preprocess = Weighted()
    fast: Any = model.optimize(runtime="openvino", calibration=NOISE[:2])
    found = fast.visual._runtime._calibration
    assert not found.requires_grad
    assert torch.equal(found, 2 * NOISE[:2])


def test_a_missing_package_is_named(tiny: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    found = {"openvino": real("openvino"), "nncf": None}
    monkeypatch.setattr(openvino_package, "find_spec", found.get)
    with pytest.raises(ConfigError, match=r"needs nncf: pip install 'clipkit-torch\[int8\]'"):
        tiny.optimize(runtime="openvino", calibration=["no such image.jpg"])


def test_a_tower_that_loses_too_much_is_refused(vit: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    real = openvino_tower._Compiled.run
    monkeypatch.setattr(
        openvino_tower._Compiled, "run", lambda self, pixels: real(self, pixels)[:, ::-1].copy()
    )
    with pytest.raises(ExportError, match="in int8 the features are too far from .* mean cosine"):
        vit.optimize(runtime="openvino", calibration=NOISE[:2])


# Run in a fresh interpreter.
QUIET = """
import json, sys
asked = []
sys.addaudithook(lambda event, args: event.startswith("socket.") and asked.append(event))
from tests.helpers.towers import make_vit
model = make_vit()
model.preprocess = lambda image: image
import torch
model.optimize(runtime="openvino", calibration=torch.randn(4, 3, 32, 32))
print(json.dumps([asked, "openvino_telemetry" in sys.modules]))
"""


def test_nothing_is_printed_or_reported_over_the_network() -> None:
    """NNCF by itself does both."""
    command = [sys.executable, "-c", QUIET]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == [[], False]
    assert "nncf" not in ended.stderr.lower()
