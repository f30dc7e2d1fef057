"""The image tower in OpenVINO has the features of the one in torch, and refuses the impossible."""

import copy
import importlib.util
import json
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import clipkit
from clipkit import CLIP, extract_features
from clipkit.encode.eval_view import eval_view
from clipkit.encode.fingerprints import fingerprint
from clipkit.encode.image_encoder import ImageEncoder
from clipkit.errors import ConfigError, ExportError
from clipkit.models import openvino_package, openvino_tower
from clipkit.models.openvino_tower import FIXED_SIZES, OpenVINOTower
from tests.helpers.alone import ALONE
from tests.helpers.random_weights import some_images
from tests.helpers.towers import make_resnet, make_vit

# Without importing it, which every process of a test run would do.
IS_MISSING = importlib.util.find_spec("openvino") is None
pytestmark = [ALONE, pytest.mark.skipif(IS_MISSING, reason="needs openvino")]

PHOTOS = sorted((Path(__file__).parents[2] / "examples" / "photos").glob("*.jpg"))
IMAGES = {"vit": some_images(7, 32), "resnet": some_images(7, 64)}


@pytest.fixture(scope="module")
def models() -> dict[str, CLIP]:
    return {"vit": make_vit(), "resnet": make_resnet()}


@pytest.fixture(scope="module")
def fast(models: dict[str, CLIP]) -> dict[str, CLIP]:
    """Return copies whose image towers run in OpenVINO. Tests must not change them."""
    return {name: model.optimize(runtime="openvino") for name, model in models.items()}


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_all_parts_of_a_copy_are_in_eval_mode(fast: dict[str, CLIP], kind: str) -> None:
    assert eval_view(fast[kind]) is fast[kind]


def tower_of(model: CLIP) -> OpenVINOTower:
    visual: object = model.visual
    assert isinstance(visual, OpenVINOTower)
    return visual


def assert_same(found: Tensor, expected: Tensor) -> None:
    """Fail unless features have a cosine of 0.9999, and numbers that are as near."""
    assert found.shape == expected.shape
    assert F.cosine_similarity(found, expected).min() >= 0.9999
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_features_are_those_of_torch(
    models: dict[str, CLIP], fast: dict[str, CLIP], name: str
) -> None:
    images = IMAGES[name]
    for count in (1, 7, 2, 3, 5, 7, 1):
        found, expected = (
            fast[name].encode_image(images[:count]),
            models[name].encode_image(images[:count]),
        )
        assert found.dtype == torch.float32
        assert_same(found, expected.detach())
    found = fast[name].encode_image(images)
    assert found.std(dim=0).max() > 0.1  # else the comparison would prove little
    assert_same(fast[name].encode_image(images.double(), normalize=True), F.normalize(found))
    assert fast[name].encode_image(images[:0]).shape == (0, 16)


def test_an_autocast_around_optimize_has_no_part_in_the_tower(models: dict[str, CLIP]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        model = models["vit"].optimize(runtime="openvino")
    expected = models["vit"].encode_image(IMAGES["vit"]).detach()
    assert_same(model.encode_image(IMAGES["vit"]), expected)


def test_few_sizes_have_a_graph_of_their_own(models: dict[str, CLIP]) -> None:
    model = models["vit"].optimize(runtime="openvino")
    runtime: Any = tower_of(model)._runtime
    for count in (1, 2, 3, 4, 5, 6, 1):
        model.encode_image(IMAGES["vit"][:count])
    sizes = [size for size, _ in runtime._compiled]
    assert sizes == [1, 2, 3, None]
    assert len(sizes) == FIXED_SIZES + 1


def test_threads_are_those_of_torch(fast: dict[str, CLIP]) -> None:
    runtime: Any = tower_of(fast["vit"])._runtime
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        fast["vit"].encode_image(IMAGES["vit"][:1])
    finally:
        torch.set_num_threads(before)
    compiled = next(one for (_, threads), one in runtime._compiled.items() if threads == 2)
    assert compiled._compiled.get_property("INFERENCE_NUM_THREADS") <= 2
    assert {threads for _, threads in runtime._compiled} >= {2}


def test_the_copy_says_what_it_is(models: dict[str, CLIP], fast: dict[str, CLIP]) -> None:
    assert fast["vit"].is_optimized
    assert fast["vit"].optimizations[0].startswith("image tower in OpenVINO 20")
    assert "OpenVINOTower of 32 x 32 pixels, embed_dim=16, torch.float32 on cpu" in repr(
        fast["vit"]
    )
    assert not models["vit"].is_optimized
    assert not isinstance(models["vit"].visual, OpenVINOTower)
    ids = models["vit"].text
    assert fast["vit"].text.vocab_size == ids.vocab_size


def test_bfloat16_is_asked_for_and_comes_back(models: dict[str, CLIP]) -> None:
    half = copy.deepcopy(models["vit"]).bfloat16().optimize(runtime="openvino")
    found = half.encode_image(IMAGES["vit"])
    assert found.dtype == torch.bfloat16
    expected = models["vit"].encode_image(IMAGES["vit"]).detach()
    assert F.cosine_similarity(found.float(), expected).min() > 0.995


def test_features_without_the_projection(models: dict[str, CLIP]) -> None:
    plain = copy.deepcopy(models["vit"])
    visual: Any = plain.visual
    visual.proj = None
    fast = plain.optimize(runtime="openvino")
    assert_same(fast.encode_image(IMAGES["vit"]), plain.encode_image(IMAGES["vit"]).detach())
    assert fast.encode_image(IMAGES["vit"]).shape == (7, 32)


@pytest.mark.parametrize("how", ["copied", "pickled"])
def test_copies_of_the_copy(fast: dict[str, CLIP], how: str) -> None:
    given = fast["vit"]
    other = copy.deepcopy(given) if how == "copied" else pickle.loads(pickle.dumps(given))
    assert other.optimizations == given.optimizations
    assert_same(other.encode_image(IMAGES["vit"]), given.encode_image(IMAGES["vit"]))
    assert fingerprint(other.visual) == fingerprint(given.visual)


def test_threads_share_it(fast: dict[str, CLIP]) -> None:
    images = IMAGES["resnet"]
    alone = [fast["resnet"].encode_image(images[i : i + 1]) for i in range(7)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(fast["resnet"].encode_image, list(images.split(1)) * 8))
    for number, found in enumerate(together):
        assert torch.equal(found, alone[number % 7])


# What uses a model


def test_the_embedded_checkpoint_classifies_and_embeds(tmp_path: Path) -> None:
    model = CLIP.from_pretrained("tiny", device="cpu")
    fast = model.optimize(runtime="openvino")
    expected, found = model.embed_images(PHOTOS), fast.embed_images(PHOTOS, batch_size=2)
    assert (expected * found).sum(dim=1).min() >= 0.9999
    texts = ["a cat", "a dog"]
    torch.testing.assert_close(fast.embed_texts(texts), model.embed_texts(texts))
    classifier = clipkit.ImageClassifier.zero_shot(fast, ["cat", "cup of coffee", "rocket"])
    predicted = [classifier.predict(path).top(1)[0][0] for path in PHOTOS]
    right = clipkit.ImageClassifier.zero_shot(model, ["cat", "cup of coffee", "rocket"])
    assert predicted == [right.predict(path).top(1)[0][0] for path in PHOTOS]
    features = extract_features(fast, PHOTOS, tmp_path / "features.safetensors")
    again = extract_features(fast, PHOTOS, tmp_path / "features.safetensors")
    assert torch.equal(features.features, again.features)
    with pytest.raises(ConfigError, match="export the classifier of the model it is of"):
        classifier.export(tmp_path / "x.pt2")


def test_features_are_known_by_all_weights(models: dict[str, CLIP], fast: dict[str, CLIP]) -> None:
    """A model that was tuned may differ in its last weights alone."""
    tuned = copy.deepcopy(models["vit"])
    with torch.no_grad():
        assert isinstance(tuned.visual.proj, Tensor)
        tuned.visual.proj[0, 0] += 1
    other = tuned.optimize(runtime="openvino")
    assert fingerprint(other.visual) != fingerprint(fast["vit"].visual)
    assert fingerprint(fast["vit"].visual) != fingerprint(models["vit"].visual)


# What is refused


def test_what_the_runtime_would_ignore_is_refused(fast: dict[str, CLIP], tmp_path: Path) -> None:
    model, images = fast["vit"], IMAGES["vit"]
    with pytest.raises(ConfigError, match="has no gradients: take those of the model"):
        model.encode_image(images.clone().requires_grad_())
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(ConfigError, match="takes no autocast"):
            model.encode_image(images)
    with pytest.raises(ConfigError, match=r"inference-only copy \(image tower in OpenVINO.*save"):
        model.save_pretrained(tmp_path / "model")
    for move in (model.double, model.half, lambda: model.to("meta")):
        with pytest.raises(ConfigError, match="stays? torch.float32 on the CPU: move or cast the"):
            move()
    assert model.float().to("cpu") is model
    with pytest.raises(ConfigError, match="can be neither compiled, traced nor exported"):
        torch.export.export(model.visual, (images,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes_are_refused(models: dict[str, CLIP], dtype: torch.dtype) -> None:
    other = copy.deepcopy(models["vit"]).to(dtype)
    with pytest.raises(ConfigError, match=f"float32 or bfloat16 on the CPU.*{dtype} on cpu"):
        other.optimize(runtime="openvino")


def test_hooks_and_other_towers_are_refused(models: dict[str, CLIP]) -> None:
    hooked = copy.deepcopy(models["vit"])
    hooked.visual.get_submodule("ln_post").register_forward_hook(lambda *_: None)
    with pytest.raises(ConfigError, match="has hooks, which OpenVINO would not call"):
        hooked.optimize(runtime="openvino")
    with pytest.raises(ConfigError, match="class Identity, and OpenVINO takes the towers of"):
        other: Any = nn.Identity()
        OpenVINOTower(other)


def test_options_that_contradict_each_other_are_refused(models: dict[str, CLIP]) -> None:
    with pytest.raises(ConfigError, match='must be "torch" or "openvino", not \'onnx\''):
        runtime: Any = "onnx"
        models["vit"].optimize(runtime=runtime)
    with pytest.raises(ConfigError, match="not 'openvino' with compile=True"):
        models["vit"].optimize(runtime="openvino", compile=True)


def test_a_missing_package_is_named(
    models: dict[str, CLIP], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_package, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs openvino: pip install 'clipkit-torch\[openvino"):
        models["vit"].optimize(runtime="openvino")


def test_a_runtime_that_computes_otherwise_is_refused(
    models: dict[str, CLIP], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = openvino_tower._Compiled.run
    monkeypatch.setattr(
        openvino_tower._Compiled, "run", lambda self, pixels: real(self, pixels)[:, ::-1].copy()
    )
    with pytest.raises(ExportError, match="does not compute what the image tower does"):
        models["vit"].optimize(runtime="openvino")


# Run in a fresh interpreter.
QUIET = """
import json, sys
asked = []
sys.addaudithook(lambda event, args: event.startswith("socket.") and asked.append(event))
from tests.helpers.towers import make_vit
make_vit().optimize(runtime="openvino")
import openvino
print(json.dumps([asked, "openvino_telemetry" in sys.modules]))
"""


def test_nothing_is_reported_over_the_network() -> None:
    """OpenVINO by itself tells its makers of each import."""
    command = [sys.executable, "-c", QUIET]
    root = Path(__file__).parents[2]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1]) == [[], False]


def test_threads_do_not_share_the_runtime(fast: dict[str, CLIP]) -> None:
    """It has threads of its own."""
    assert not ImageEncoder(fast["vit"]).takes_threads
    assert ImageEncoder(make_vit().optimize()).takes_threads
