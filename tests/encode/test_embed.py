"""clipkit.encode.embed: the encoders' own numbers, whatever the batches and workers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from clipkit import CLIP
from clipkit.encode.embed import embed_images, embed_texts, stream_features
from clipkit.encode.features import Features
from clipkit.encode.image_encoder import Precision
from clipkit.encode.store import extract_features
from clipkit.errors import ConfigError, DataError, ImageError
from clipkit.tokenizer import Tokenizer
from tests.helpers.models import make_small_tokenizer
from tests.helpers.toy_data import toy_config, two_colors


@pytest.fixture(scope="module")
def model(small_tokenizer: Tokenizer) -> CLIP:
    torch.manual_seed(0)
    return CLIP(toy_config(), small_tokenizer).eval()


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [
        two_colors((20 * i, 0, 90), (0, 25 * i, 30), seed=i, size=(30 + i, 40)) for i in range(7)
    ]


@pytest.fixture(scope="module")
def expected(model: CLIP, images: list[Image.Image]) -> Tensor:
    batch = torch.stack([model.preprocess(image) for image in images])
    with torch.no_grad():
        return F.normalize(model.encode_image(batch), dim=-1)


@pytest.mark.parametrize(
    "options", [{}, {"batch_size": 2}, {"batch_size": 7}, {"batch_size": 3, "workers": 2}]
)
def test_images_in_order_whatever_the_batches(
    model: CLIP, images: list[Image.Image], expected: Tensor, options: dict[str, Any]
) -> None:
    features = embed_images(model, images, **options)
    assert features.shape == (7, 32)
    assert features.dtype == torch.float32
    assert features.device.type == "cpu"
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)
    assert (expected[0] - expected[6]).abs().max() > 1e-2  # so that another order would show


def test_paths_and_images_alike(
    model: CLIP, images: list[Image.Image], expected: Tensor, tmp_path: Path
) -> None:
    mixed = [*images[:3], *(tmp_path / f"{i}.png" for i in range(3, 6)), str(tmp_path / "6.png")]
    for i in range(3, 7):
        images[i].save(tmp_path / f"{i}.png")
    torch.testing.assert_close(embed_images(model, mixed), expected, rtol=1e-5, atol=1e-6)


def test_a_bar_is_shown_only_if_asked(
    model: CLIP, images: list[Image.Image], capfd: pytest.CaptureFixture[str]
) -> None:
    embed_images(model, images)
    assert capfd.readouterr().err == ""
    embed_images(model, images, batch_size=2, progress=True)
    assert "7/7" in capfd.readouterr().err


def test_an_image_that_cannot_be_read_is_named(
    small_tokenizer: Tokenizer, images: list[Image.Image], tmp_path: Path
) -> None:
    model = CLIP(toy_config(), small_tokenizer).train()
    with pytest.raises(ImageError, match="cannot find .*nothing.png") as kept:
        embed_images(model, [images[0], tmp_path / "nothing.png"])
    assert kept.tb  # the frames in which it broke off are held
    assert all(module.training for module in model.modules())


@pytest.fixture
def broken(tmp_path: Path, images: list[Image.Image]) -> list[Path]:
    """Return seven files. The second cannot be read, nor the last two."""
    files = [tmp_path / f"{i}.png" for i in range(7)]
    for image, file in zip(images, files, strict=True):
        image.save(file)
    files[1].write_bytes(files[1].read_bytes()[:300])
    files[5].write_bytes(b"")
    files[6].unlink()
    return files


@pytest.mark.parametrize("options", [{}, {"batch_size": 2}, {"batch_size": 1, "workers": 2}])
def test_broken_images_are_skipped_and_told(
    model: CLIP, expected: Tensor, broken: list[Path], options: dict[str, Any]
) -> None:
    result = extract_features(model, broken, **options)
    torch.testing.assert_close(result.features, expected[[0, 2, 3, 4]], rtol=1e-5, atol=1e-6)
    assert result.paths == [str(broken[i]) for i in (0, 2, 3, 4)]
    assert result.labels is None
    assert [path for path, _ in result.skipped] == [str(broken[i]) for i in (1, 5, 6)]
    reasons = ("truncated", "cannot identify", "cannot find")
    for (path, why), reason in zip(result.skipped, reasons, strict=True):
        assert path in why
        assert reason in why


def test_a_batch_at_a_time(model: CLIP, expected: Tensor, broken: list[Path]) -> None:
    parts = list(stream_features(model, broken, batch_size=2))
    assert [(len(part.features), len(part.skipped)) for part in parts] == [
        (1, 1),
        (2, 0),
        (1, 1),
        (0, 1),
    ]
    torch.testing.assert_close(parts[1].features, expected[2:4], rtol=1e-5, atol=1e-6)


def test_nothing_but_broken_images_is_an_error(model: CLIP, broken: list[Path]) -> None:
    with pytest.raises(DataError, match="none of 3 images can be read; of the first: .*1.png"):
        extract_features(model, [broken[i] for i in (1, 5, 6)], batch_size=2)


def test_as_long_as_the_encoder_makes_them_if_asked(model: CLIP, images: list[Image.Image]) -> None:
    raw = extract_features(model, images, normalize=False).features
    with torch.no_grad():
        expected = model.encode_image(torch.stack([model.preprocess(image) for image in images]))
    torch.testing.assert_close(raw, expected, rtol=1e-5, atol=1e-6)
    assert (raw.norm(dim=-1) - 1).abs().min() > 0.01  # so that the scale would show


class Recorder(torch.nn.Module):
    """Note how it is called. Dropout and batch norm show whether it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 16, 16),
            torch.nn.BatchNorm2d(8),
            torch.nn.Dropout(),
            torch.nn.Flatten(),
        )
        self.seen: list[torch.dtype] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(self.layers[0](images).dtype)
        return self.layers(images)


def to_tensor(image: Image.Image) -> Tensor:
    from torchvision.transforms.functional import to_tensor

    assert image.mode == "RGB"
    return to_tensor(image.resize((32, 32)))


def test_precision_is_that_of_the_computation_and_not_of_the_result(
    images: list[Image.Image],
) -> None:
    tower = Recorder()
    cases: list[tuple[Precision | None, torch.dtype]] = [
        ("bfloat16", torch.bfloat16),
        ("float16", torch.float16),
        ("float32", torch.float32),
        (None, torch.float32),
    ]
    exact = extract_features(tower, images, transform=to_tensor).features
    for precision, dtype in cases:
        tower.seen.clear()
        features = extract_features(
            tower, images, transform=to_tensor, precision=precision
        ).features
        assert tower.seen == [dtype]
        assert features.dtype == torch.float32
        torch.testing.assert_close(features, exact, rtol=0, atol=0.01)
        assert torch.equal(features, exact) == (dtype == torch.float32)
    with torch.autocast("cpu", torch.bfloat16):  # around the call: only None leaves it on
        extract_features(tower, images, transform=to_tensor, precision="float32")
        assert tower.seen[-1] == torch.float32
        extract_features(tower, images, transform=to_tensor)
        assert tower.seen[-1] == torch.bfloat16
    extract_features(tower.bfloat16(), images, transform=to_tensor)
    assert tower.seen[-1] == torch.bfloat16


def test_models_of_clipkit_take_half_precision(
    model: CLIP, images: list[Image.Image], expected: Tensor
) -> None:
    for precision in ("bfloat16", "float16"):
        features = extract_features(model, images, precision=precision).features
        torch.testing.assert_close(features, expected, rtol=0, atol=0.03)
        assert not torch.equal(features, extract_features(model, images).features)


@pytest.mark.parametrize("precision", ["fp16", "float64", torch.float16])
def test_refuses_other_precisions(model: CLIP, images: list[Image.Image], precision: Any) -> None:
    with pytest.raises(ConfigError, match=f"not {precision}"):
        extract_features(model, images, precision=precision)


def test_refuses_full_precision_of_half_weights(
    small_tokenizer: Tokenizer, images: list[Image.Image]
) -> None:
    half = CLIP(toy_config(), small_tokenizer).half()
    with pytest.raises(ConfigError, match="of float32 weights, float32; not float32"):
        extract_features(half, images, precision="float32")


def test_towers_of_others_are_not_changed(images: list[Image.Image]) -> None:
    tower = Recorder().train()
    tower.layers[1].eval()  # it is frozen
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    first, again = (extract_features(tower, images, transform=to_tensor).features for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (7, 32)
    modes = [tower.training, *(layer.training for layer in tower.layers)]
    assert modes == [True, True, False, True, True]
    assert all(torch.equal(value, before[name]) for name, value in tower.state_dict().items())


def test_a_torchvision_model_stands_in(images: list[Image.Image]) -> None:
    from torchvision.models import ResNet18_Weights, resnet18

    torch.manual_seed(0)
    tower = resnet18(weights=None)
    transform = ResNet18_Weights.DEFAULT.transforms()
    tower.add_module("fc", torch.nn.Identity())
    # Gray images come along, and such a transform does not take them.
    mixed = [*images[:2], images[2].convert("L")]
    result = extract_features(tower, mixed, transform=transform, batch_size=2)
    batch = torch.stack([transform(image.convert("RGB")) for image in mixed])
    with torch.no_grad():
        expected = tower.eval()(batch)
    torch.testing.assert_close(result.features, F.normalize(expected, dim=-1), rtol=1e-4, atol=1e-6)
    with pytest.raises(
        ConfigError, match="ResNet has no preprocessing of its own: give its transform"
    ):
        extract_features(tower, mixed)
    trunk = torch.nn.Sequential(*list(tower.children())[:-1])
    message = r"of 2 images a model must make \(2, D\), not Tensor \(2, 512, 1, 1\)"
    with pytest.raises(ConfigError, match=message):
        extract_features(trunk, mixed, transform=transform, batch_size=2)


def test_the_transform_goes_before_the_models_own(
    model: CLIP, images: list[Image.Image], expected: Tensor
) -> None:
    def mirrored(image: Image.Image) -> Tensor:
        return model.preprocess(image).flip(-1)

    other = extract_features(model, images, transform=mirrored).features
    same = embed_images(model, [mirror(image) for image in images])
    torch.testing.assert_close(other, same, rtol=0, atol=0.01)
    assert (other - expected).abs().max() > 0.02


def mirror(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def test_one_order_of_features_labels_and_names(
    model: CLIP, images: list[Image.Image], expected: Tensor
) -> None:
    result = extract_features(
        model, [(image, 10 - i) for i, image in enumerate(images)], batch_size=3
    )
    assert isinstance(result, Features)
    assert result.paths == [str(i) for i in range(7)]
    assert result.labels is not None
    assert result.labels.dtype == torch.int64
    assert result.labels.tolist() == [10 - i for i in range(7)]
    torch.testing.assert_close(result.features, expected, rtol=1e-5, atol=1e-6)


def test_features_can_be_trained_on(model: CLIP, images: list[Image.Image]) -> None:
    """They are plain tensors without a graph, unlike those of inference mode."""
    for features in (embed_images(model, images), embed_texts(model, ["a", "b"])):
        assert not features.requires_grad
        assert not features.is_inference()
        weight = torch.randn(3, 32, requires_grad=True)
        (features @ weight.T).square().sum().backward()
        assert weight.grad is not None
        assert weight.grad.any()


def test_half_precision_models_give_unit_float32(
    small_tokenizer: Tokenizer, images: list[Image.Image], expected: Tensor
) -> None:
    torch.manual_seed(0)
    half = CLIP(toy_config(), small_tokenizer).eval().bfloat16()
    for features in (embed_images(half, images), embed_texts(half, ["a", "b"])):
        assert features.dtype == torch.float32
        torch.testing.assert_close(
            features.norm(dim=-1), torch.ones(len(features)), rtol=0, atol=1e-6
        )
    torch.testing.assert_close(embed_images(half, images), expected, rtol=0, atol=0.03)


@pytest.mark.parametrize(("function", "name"), [(embed_images, "image"), (embed_texts, "text")])
def test_refuses_nothing(
    model: CLIP, function: Callable[[CLIP, list[str]], Tensor], name: str
) -> None:
    with pytest.raises(ConfigError, match=f"needs at least one {name}"):
        function(model, [])


class Halving:
    """Encode images without torch modules: any object with the two methods will do."""

    def preprocess(self, image: Image.Image) -> Tensor:
        return to_tensor(image)

    def encode_image(self, image: Tensor) -> Tensor:
        return image[:, :, :4, :4].flatten(1) / 2  # (n, 3, 32, 32) -> (n, 48)


def test_whatever_encodes_will_do(images: list[Image.Image], tmp_path: Path) -> None:
    expected = torch.stack([to_tensor(image)[:, :4, :4].flatten() / 2 for image in images])
    result = extract_features(Halving(), images, normalize=False)
    assert torch.equal(result.features, expected)
    assert torch.equal(embed_images(Halving(), images), F.normalize(expected, dim=-1))
    with pytest.raises(ConfigError, match="Halving is no torch module.* leave out= "):
        extract_features(Halving(), images, out=tmp_path / "features.safetensors")


def test_repr_of_features_is_short(model: CLIP, broken: list[Path]) -> None:
    rows = [(file, i % 3) for i, file in enumerate(broken)]
    assert repr(extract_features(model, rows)) == "Features(4 x 32, labels: 3 classes, 3 skipped)"
    assert repr(extract_features(model, broken[2:5])) == "Features(3 x 32)"
    assert len(extract_features(model, rows)) == 4


class Elsewhere:
    """Make features on a device that copies nothing to the CPU, and says so if it is asked to."""

    tokenizer = make_small_tokenizer()

    def preprocess(self, image: Image.Image) -> Tensor:
        return to_tensor(image)

    def encode_image(self, image: Tensor) -> Tensor:
        return torch.empty(len(image), 4, device="meta")

    def encode_text(self, text: Tensor) -> Tensor:
        return torch.empty(len(text), 4, device="meta")


def test_features_are_asked_to_the_cpu(images: list[Image.Image]) -> None:
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        embed_images(Elsewhere(), images)
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        embed_texts(Elsewhere(), ["a cat"])


@pytest.mark.gpu
def test_features_of_a_model_on_a_card_are_on_the_cpu(
    small_tokenizer: Tokenizer, images: list[Image.Image]
) -> None:
    model = CLIP(toy_config(), small_tokenizer).eval().cuda()
    assert embed_images(model, images).device.type == "cpu"
    assert embed_texts(model, ["a cat"]).device.type == "cpu"
