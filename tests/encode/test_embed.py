"""clipkit.encode.store: the encoders' own numbers, whatever the batches and workers."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from clipkit import CLIP
from clipkit.cli import main
from clipkit.encode.embed import TEXT_BATCH, Features, embed_images, embed_texts, stream_features
from clipkit.encode.store import extract_features
from clipkit.errors import ConfigError, DataError, ImageError, TokenizerError
from clipkit.tokenizer import Tokenizer
from tests.helpers.toy_data import picture, toy_config


@pytest.fixture(scope="module")
def model(small_tokenizer: Tokenizer) -> CLIP:
    torch.manual_seed(0)
    return CLIP(toy_config(), small_tokenizer).eval()


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [picture((20 * i, 0, 90), (0, 25 * i, 30), seed=i, size=(30 + i, 40)) for i in range(7)]


@pytest.fixture(scope="module")
def expected(model: CLIP, images: Any) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat(
            [
                F.normalize(model.encode_image(model.preprocess(image)[None]), dim=-1)
                for image in images
            ]
        )


@pytest.mark.parametrize(
    "options", [{}, {"batch_size": 2}, {"batch_size": 7}, {"batch_size": 3, "workers": 2}]
)
def test_images_in_order_whatever_the_batches(
    model: CLIP, images: Any, expected: Any, options: dict[str, Any]
) -> None:
    features = embed_images(model, images, **options)
    assert (
        features.shape == (7, 32)
        and features.dtype == torch.float32
        and features.device.type == "cpu"
    )
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)
    assert (expected[0] - expected[6]).abs().max() > 1e-2  # so that another order would show


def test_paths_and_pictures_alike(model: CLIP, images: Any, expected: Any, tmp_path: Path) -> None:
    mixed = [*images[:3], *(tmp_path / f"{i}.png" for i in range(3, 6)), str(tmp_path / "6.png")]
    for i in range(3, 7):
        images[i].save(tmp_path / f"{i}.png")
    torch.testing.assert_close(embed_images(model, mixed), expected, rtol=1e-5, atol=1e-6)


def test_a_bar_is_shown_only_if_asked(model: CLIP, images: Any, capfd) -> None:
    embed_images(model, images)
    assert capfd.readouterr().err == ""
    embed_images(model, images, batch_size=2, progress=True)
    assert "7/7" in capfd.readouterr().err


def test_a_picture_that_cannot_be_read_is_named(model: CLIP, tmp_path: Path) -> None:
    train = model.train()
    try:
        with pytest.raises(ImageError, match="cannot find .*nothing.png") as kept:
            embed_images(train, [picture((0, 0, 0), (9, 9, 9), seed=0), tmp_path / "nothing.png"])
        assert all(module.training for module in model.modules())  # as before, though it broke off
        assert kept.tb  # and though the frames that it broke off in are held
    finally:
        model.eval()


@pytest.fixture
def broken(tmp_path: Path, images: Any) -> list:
    """Seven files, of which the second cannot be read, nor the last two."""
    files = [tmp_path / f"{i}.png" for i in range(7)]
    for image, file in zip(images, files, strict=True):
        image.save(file)
    files[1].write_bytes(files[1].read_bytes()[:300])
    files[5].write_bytes(b"")
    files[6].unlink()
    return files


@pytest.mark.parametrize("options", [{}, {"batch_size": 2}, {"batch_size": 1, "workers": 2}])
def test_broken_pictures_are_skipped_and_told(
    model: CLIP, expected: Any, broken, options: dict[str, Any]
) -> None:
    result = extract_features(model, broken, **options)
    torch.testing.assert_close(result.features, expected[[0, 2, 3, 4]], rtol=1e-5, atol=1e-6)
    assert result.paths == [str(broken[i]) for i in (0, 2, 3, 4)] and result.labels is None
    assert [path for path, _ in result.skipped] == [str(broken[i]) for i in (1, 5, 6)]
    for (path, why), reason in zip(
        result.skipped, ("truncated", "cannot identify", "cannot find"), strict=True
    ):
        assert path in why and reason in why


def test_a_batch_at_a_time(model: CLIP, expected: Any, broken) -> None:
    parts = list(stream_features(model, broken, batch_size=2))
    assert [(len(part.features), len(part.skipped)) for part in parts] == [
        (1, 1),
        (2, 0),
        (1, 1),
        (0, 1),
    ]
    torch.testing.assert_close(parts[1].features, expected[2:4], rtol=1e-5, atol=1e-6)


def test_nothing_but_broken_pictures_is_an_error(model: CLIP, broken) -> None:
    with pytest.raises(DataError, match="none of 3 images can be read; of the first: .*1.png"):
        extract_features(model, [broken[i] for i in (1, 5, 6)], batch_size=2)


def test_the_command_line_tells_of_each_even_if_all_are_broken(
    broken, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["classify", str(broken[5]), str(broken[1]), "--labels", "a", "b", "--device", "cpu"])
        == 1
    )
    out, err = capsys.readouterr()
    problems = [
        line
        for line in err.splitlines()
        if line.startswith("clipkit: skipped: cannot read the image at")
    ]
    assert out == "" and [f"{i}.png" in line for i, line in zip((5, 1), problems, strict=True)] == [
        True,
        True,
    ]


def test_as_long_as_the_encoder_makes_them_if_asked(model: CLIP, images: Any) -> None:
    raw = extract_features(model, images, normalize=False).features
    with torch.no_grad():
        expected = model.encode_image(torch.stack([model.preprocess(image) for image in images]))
    torch.testing.assert_close(raw, expected, rtol=1e-5, atol=1e-6)
    assert (raw.norm(dim=-1) - 1).abs().min() > 0.01  # so that the scale would show


class Recorder(torch.nn.Module):
    """A tower of the user's, which notes how it was called; a dropout and a batch norm show whether it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 16, 16),
            torch.nn.BatchNorm2d(8),
            torch.nn.Dropout(),
            torch.nn.Flatten(),
        )
        self.seen: list[torch.dtype] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(self.layers[0](images).dtype)
        return self.layers(images)


def to_tensor(image: Image.Image) -> torch.Tensor:
    from torchvision.transforms.functional import to_tensor

    assert image.mode == "RGB"
    return to_tensor(image.resize((32, 32)))


def test_precision_is_that_of_the_computation_and_not_of_the_result(images: Any) -> None:
    tower = Recorder()
    halves = [(name, getattr(torch, name)) for name in ("bfloat16", "float16")]
    exact = extract_features(tower, images, transform=to_tensor).features
    for precision, dtype in [*halves, ("float32", torch.float32), (None, torch.float32)]:
        tower.seen.clear()
        features = extract_features(
            tower, images, transform=to_tensor, precision=precision
        ).features
        assert tower.seen == [dtype] and features.dtype == torch.float32
        torch.testing.assert_close(features, exact, rtol=0, atol=0.01)
        assert torch.equal(features, exact) == (dtype == torch.float32)
    with torch.autocast("cpu", torch.bfloat16):  # around the call: only None leaves it on
        for precision, dtype in (("float32", torch.float32), (None, torch.bfloat16)):
            extract_features(tower, images, transform=to_tensor, precision=precision)
            assert tower.seen[-1] == dtype
    extract_features(tower.bfloat16(), images, transform=to_tensor)
    assert tower.seen[-1] == torch.bfloat16


def test_models_of_clipkit_take_half_precision(model: CLIP, images: Any, expected: Any) -> None:
    for precision in ("bfloat16", "float16"):
        features = extract_features(model, images, precision=precision).features
        torch.testing.assert_close(features, expected, rtol=0, atol=0.03)
        assert not torch.equal(features, extract_features(model, images).features)


@pytest.mark.parametrize("precision", ["fp16", "float64", torch.float16])
def test_refuses_other_precisions(model: CLIP, images: Any, precision) -> None:
    with pytest.raises(ConfigError, match=f"not {precision}"):
        extract_features(model, images, precision=precision)


def test_refuses_full_precision_of_half_weights(small_tokenizer: Tokenizer, images: Any) -> None:
    half = CLIP(toy_config(), small_tokenizer).half()
    with pytest.raises(ConfigError, match="of float32 weights, float32; not float32"):
        extract_features(half, images, precision="float32")


def test_towers_of_others_are_in_eval_mode_only_meanwhile(images: Any) -> None:
    tower = Recorder().train()
    tower.layers[1].eval()  # as one that is frozen
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    first, again = (extract_features(tower, images, transform=to_tensor).features for _ in range(2))
    assert torch.equal(first, again) and first.shape == (7, 32)
    assert [tower.training, *(layer.training for layer in tower.layers)] == [
        True,
        True,
        False,
        True,
        True,
    ]
    assert all(torch.equal(value, before[name]) for name, value in tower.state_dict().items())


def test_a_torchvision_model_stands_in(images: Any) -> None:
    from torchvision.models import ResNet18_Weights, resnet18

    torch.manual_seed(0)
    tower, transform = resnet18(weights=None), ResNet18_Weights.DEFAULT.transforms()
    tower.fc = torch.nn.Identity()
    grey = [
        *images[:2],
        images[2].convert("L"),
    ]  # as pictures come, and such a transform does not take them
    result = extract_features(tower, grey, transform=transform, batch_size=2)
    with torch.no_grad():
        expected = tower.eval()(torch.stack([transform(image.convert("RGB")) for image in grey]))
    torch.testing.assert_close(result.features, F.normalize(expected, dim=-1), rtol=1e-4, atol=1e-6)
    with pytest.raises(
        ConfigError, match="ResNet has no preprocessing of its own: give its transform"
    ):
        extract_features(tower, grey)
    with pytest.raises(
        ConfigError, match=r"of 2 images a model must make \(2, D\), not Tensor \(2, 512, 1, 1\)"
    ):
        trunk = torch.nn.Sequential(*list(tower.children())[:-1])
        extract_features(trunk, grey, transform=transform, batch_size=2)


def test_the_transform_goes_before_the_models_own(model: CLIP, images: Any, expected: Any) -> None:
    other = extract_features(
        model, images, transform=lambda image: model.preprocess(image).flip(-1)
    ).features
    torch.testing.assert_close(
        other, embed_images(model, [mirror(image) for image in images]), rtol=0, atol=0.01
    )
    assert (other - expected).abs().max() > 0.02


def mirror(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def test_one_order_of_features_labels_and_names(model: CLIP, images: Any, expected: Any) -> None:
    result = extract_features(
        model, [(image, 10 - i) for i, image in enumerate(images)], batch_size=3
    )
    assert isinstance(result, Features) and result.paths == [str(i) for i in range(7)]
    assert result.labels is not None and result.labels.dtype == torch.int64
    assert result.labels.tolist() == [10 - i for i in range(7)]
    torch.testing.assert_close(result.features, expected, rtol=1e-5, atol=1e-6)


def test_texts_over_more_than_a_batch(model: CLIP, small_tokenizer: Tokenizer) -> None:
    texts = [f"word {i}" for i in range(TEXT_BATCH + 9)]
    features = embed_texts(model, texts)
    with torch.no_grad():
        expected = F.normalize(model.encode_text(small_tokenizer(texts)), dim=-1)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)


def test_features_can_be_trained_on(model: CLIP, images: Any) -> None:
    """They are plain tensors without a graph, not such as inference mode gives."""
    for features in (embed_images(model, images), embed_texts(model, ["a", "b"])):
        assert not features.requires_grad and not features.is_inference()
        weight = torch.randn(3, 32, requires_grad=True)
        (features @ weight.T).square().sum().backward()
        assert weight.grad is not None and weight.grad.any()


def test_half_precision_models_give_unit_float32(
    small_tokenizer: Tokenizer, images: Any, expected: Any
) -> None:
    torch.manual_seed(0)
    half = CLIP(toy_config(), small_tokenizer).eval().bfloat16()
    for features in (embed_images(half, images), embed_texts(half, ["a", "b"])):
        assert features.dtype == torch.float32
        torch.testing.assert_close(
            features.norm(dim=-1), torch.ones(len(features)), rtol=0, atol=1e-6
        )
    torch.testing.assert_close(embed_images(half, images), expected, rtol=0, atol=0.03)


def test_long_texts_are_cut_only_if_asked(model: CLIP) -> None:
    long = "word " * 50
    with pytest.raises(TokenizerError, match="16"):
        embed_texts(model, ["short", long])
    assert torch.equal(
        embed_texts(model, [long], truncate=True),
        embed_texts(model, [long + "more"], truncate=True),
    )


@pytest.mark.parametrize(("function", "name"), [(embed_images, "image"), (embed_texts, "text")])
def test_refuses_nothing(model: CLIP, function, name: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"needs at least one {name}")):
        function(model, [])
