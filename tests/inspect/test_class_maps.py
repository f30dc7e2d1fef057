"""Classes are scored at each pixel, by windows, names, backgrounds and refinement."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from clipkit import CLIP, CLIPConfig, Preprocess, TextConfig, inspect, zero_shot_weights
from clipkit.errors import ConfigError, ImageError
from clipkit.inspect import class_map, class_maps
from clipkit.inspect.refine import refine_scores
from tests.helpers.package import TESTS
from tests.helpers.random_weights import randomize
from tests.helpers.towers import VIT

CAT = TESTS.parent / "examples" / "photos" / "cat.jpg"
NAMES = ["cat", "sofa", "tree"]


@pytest.fixture(scope="module")
def tiny() -> CLIP:
    """Return the embedded model. Tests must not change it."""
    return CLIP.from_pretrained("tiny", device="cpu")


def some_photo(size: tuple[int, int] = (40, 56), seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC)


def random_vit() -> CLIP:
    """Return a random model that knows the words of the tests."""
    text = TextConfig(width=32, layers=1, head_width=16, activation="gelu")
    return randomize(CLIP(CLIPConfig(embed_dim=16, vision=VIT, text=text)))


def prepared(model: CLIP, photo: Image.Image, size: tuple[int, int]) -> Tensor:
    """Return a photo in a size, as the tower takes it, (1, 3, H, W)."""
    resized = photo.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255
    config = model.config.preprocess
    mean, std = torch.tensor(config.mean), torch.tensor(config.std)
    return ((pixels - mean[:, None, None]) / std[:, None, None])[None]


def cosines_of(model: CLIP, images: Tensor, texts: Tensor, method: Any = None) -> Tensor:
    """Return the cosines of each place with each text, (texts, rows, columns)."""
    with torch.no_grad():
        maps = F.normalize(inspect.dense_features(model, images, method)[0], dim=0)
    return (texts @ maps.flatten(1)).unflatten(1, maps.shape[1:])


@pytest.mark.parametrize("method", ["neighbors", "values", "queries"])
@pytest.mark.parametrize("kind", ["vit", "tiny"])
def test_one_window_is_one_pass(kind: str, method: Any, tiny: CLIP) -> None:
    model, size = (tiny, (96, 128)) if kind == "tiny" else (random_vit(), (64, 96))
    photo = some_photo()  # of 40 x 56 pixels, which become whole patches
    mapper = inspect.ClassMapper(model, NAMES, method=method, window=999, short_side=size[0])
    if kind == "vit":  # its texts are all alike
        random = torch.Generator().manual_seed(0)
        mapper._texts = F.normalize(torch.randn(3, 16, generator=random), dim=1)
    found = mapper(photo)
    cosines = cosines_of(model, prepared(model, photo, size), mapper._texts, method)
    enlarged = F.interpolate(cosines[None], (40, 56), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(found, (40 * enlarged).softmax(dim=0), rtol=1e-3, atol=1e-4)
    assert found.amax(dim=(1, 2)).max() > found.amin(dim=(1, 2)).min() + 0.3


def test_windows_are_averaged_on_the_grid_of_patches(tiny: CLIP) -> None:
    photo = some_photo((64, 128))
    found = class_map(tiny, photo, NAMES, window=64, stride=32, short_side=64)
    pixels = prepared(tiny, photo, (64, 128))
    total, counts = torch.zeros(3, 2, 4), torch.zeros(4)
    for left in (0, 1, 2):
        part = pixels[:, :, :, 32 * left : 32 * left + 64]
        total[:, :, left : left + 2] += cosines_of(tiny, part, zero_shot_weights(tiny, NAMES))
        counts[left : left + 2] += 1
    enlarged = F.interpolate((total / counts)[None], (64, 128), mode="bilinear")[0]
    torch.testing.assert_close(found, (40 * enlarged).softmax(dim=0), rtol=1e-3, atol=1e-4)
    other = class_map(tiny, photo, NAMES, window=64, stride=32, short_side=64, batch_size=1)
    torch.testing.assert_close(found, other, rtol=1e-4, atol=1e-5)


def test_the_towers_own_size_decides_the_windows(
    tiny: CLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[int, ...]] = []

    def seen(model: CLIP, images: Tensor, *options: Any, **more: Any) -> Tensor:
        sizes.append(tuple(images.shape))
        return inspect.dense_features(model, images, *options, **more)

    monkeypatch.setattr(class_maps, "dense_features", seen)
    class_map(tiny, some_photo((100, 300)), NAMES)
    # Its sides become 144 and 432, in places of 32 pixels 4 x 14. Half a window is one place.
    assert sizes == [(8, 3, 96, 96)] * 3


def test_several_names_count_by_their_best(tiny: CLIP) -> None:
    photo = some_photo()
    alone = class_map(tiny, photo, ["cat", "kitten", "sofa"])
    grouped = class_map(tiny, photo, {"pet": ["cat", "kitten"], "sofa": "sofa"})
    expected = torch.stack([alone[:2].amax(dim=0), alone[2]])
    torch.testing.assert_close(grouped, expected)


def test_templates_of_each_class_stay_with_its_names(tiny: CLIP) -> None:
    templates = {"pet": ["a {}", "the {}"], "sofa": ["one {}"]}
    mapper = inspect.ClassMapper(tiny, {"pet": ["cat", "kitten"], "sofa": "sofa"}, templates)
    prompts = {"a": ["a cat", "the cat"], "b": ["a kitten", "the kitten"], "c": ["one sofa"]}
    torch.testing.assert_close(mapper._texts, zero_shot_weights(tiny, prompts, None))
    assert mapper.labels == ["pet", "sofa"]
    assert mapper(some_photo()).shape == (2, 40, 56)


def test_a_background_of_names_is_a_class_at_the_end(tiny: CLIP) -> None:
    photo = some_photo()
    mapper = inspect.ClassMapper(tiny, ["cat", "sofa"], background=["wall", "sky"])
    assert mapper.labels == ["cat", "sofa", "background"]
    alone = class_map(tiny, photo, ["cat", "sofa", "wall", "sky"])
    expected = torch.cat([alone[:2], alone[2:].amax(dim=0, keepdim=True)])
    torch.testing.assert_close(mapper(photo), expected)


def test_a_background_by_threshold_wins_where_no_class_is_probable(tiny: CLIP) -> None:
    alone = class_map(tiny, CAT, NAMES)
    share = float(alone.amax(dim=0).median())
    found = class_map(tiny, CAT, NAMES, background=share)
    torch.testing.assert_close(found[:3], alone)
    expected = torch.where(alone.amax(dim=0) >= share, alone.argmax(dim=0), 3)
    assert torch.equal(found.argmax(dim=0), expected)
    assert 0.4 < (expected == 3).float().mean() < 0.6


def test_indices_are_the_best_scores_in_less_memory(tiny: CLIP) -> None:
    mapper = inspect.ClassMapper(tiny, NAMES, background=0.5)
    assert torch.equal(mapper.indices(CAT), mapper(CAT).argmax(dim=0))
    assert mapper.indices(CAT, size=(7, 9)).shape == (7, 9)
    assert mapper(CAT, size=(7, 9)).shape == (4, 7, 9)


@pytest.mark.parametrize("kind", ["path", "text", "bytes", "array", "tensor", "floats"])
def test_photos_come_in_many_forms(kind: str, tiny: CLIP) -> None:
    pil = Image.open(CAT).convert("RGB")
    array = np.array(pil)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    forms: dict[str, Any] = {
        "path": CAT,
        "text": str(CAT),
        "bytes": CAT.read_bytes(),
        "array": array,
        "tensor": tensor,
        "floats": tensor / 255,
    }
    expected = class_map(tiny, pil, NAMES)
    assert expected.shape == (3, pil.height, pil.width)
    found = class_map(tiny, forms[kind], NAMES)
    if kind in ("tensor", "floats"):  # torch resizes in place of PIL
        assert (found - expected).abs().mean() < 0.005
    else:
        assert torch.equal(found, expected)


def test_refinement_is_that_of_the_cosines_at_the_working_size(tiny: CLIP) -> None:
    photo = some_photo((64, 96))
    found = class_map(tiny, photo, NAMES, short_side=64, window=999, refine=True)
    pixels = prepared(tiny, photo, (64, 96))
    cosines = cosines_of(tiny, pixels, zero_shot_weights(tiny, NAMES))
    enlarged = F.interpolate(cosines[None], (64, 96), mode="bilinear", align_corners=False)[0]
    refined = refine_scores(enlarged, pixels[0])
    torch.testing.assert_close(found, (40 * refined).softmax(dim=0), rtol=1e-3, atol=1e-3)
    plain = class_map(tiny, photo, NAMES, short_side=64, window=999)
    assert (found - plain).abs().max() > 0.01


def test_affinities_are_asked_for_each_batch_of_windows(tiny: CLIP) -> None:
    asked: list[tuple[tuple[int, ...], tuple[int, int]]] = []

    def alike(windows: Tensor, grid: tuple[int, int]) -> Tensor:
        asked.append((tuple(windows.shape), grid))
        places = grid[0] * grid[1]
        return torch.ones(len(windows), places, places)

    photo = some_photo((64, 64))
    options: dict[str, Any] = {"window": 64, "short_side": 64}
    found = class_map(tiny, photo, NAMES, affinity=alike, **options)
    assert asked == [((1, 3, 64, 64), (2, 2))]
    torch.testing.assert_close(found, found[:, :1, :1].expand_as(found))
    with pytest.raises(ConfigError, match="affinity would be ignored by method='values'"):
        class_map(tiny, photo, NAMES, affinity=alike, method="values")


def test_the_scale_of_the_logits_sharpens(tiny: CLIP) -> None:
    soft = class_map(tiny, CAT, NAMES, logit_scale=10)
    hard = class_map(tiny, CAT, NAMES, logit_scale=400)
    assert soft.amax(dim=0).mean() < hard.amax(dim=0).mean()
    assert torch.equal(soft.argmax(dim=0), hard.argmax(dim=0))


def test_half_precision_and_fast_copies_score_the_same(tiny: CLIP) -> None:
    expected = class_map(tiny, CAT, NAMES)
    fast = class_map(tiny.optimize(), CAT, NAMES)
    torch.testing.assert_close(fast, expected, rtol=1e-3, atol=1e-3)
    half = class_map(CLIP.from_pretrained("tiny", device="cpu", dtype=torch.bfloat16), CAT, NAMES)
    assert half.dtype is torch.float32
    assert (half.argmax(0) == expected.argmax(0)).float().mean() > 0.9


def test_training_stays_as_it_is(tiny: CLIP) -> None:
    model = CLIP.from_pretrained("tiny", device="cpu").train()
    torch.testing.assert_close(class_map(model, CAT, NAMES), class_map(tiny, CAT, NAMES))
    assert model.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"background": "wall"}, r"background must be a list of names.*not 'wall'"),
        ({"background": []}, r"background must be a list of names"),
        ({"background": 1.5}, r"background must be a probability from 0 to 1.*not 1\.5"),
        ({"background": True}, r"background must be a probability from 0 to 1.*not True"),
        ({"window": 31}, r"window must be an integer from 32 on, not 31"),
        ({"window": 64.0}, r"window must be an integer from 32 on, not 64\.0"),
        ({"stride": 0}, r"stride must be an integer from 1 on, not 0"),
        ({"stride": 97}, r"stride=97 is more than the window of 96 pixels"),
        ({"stride": 65, "window": 64}, r"stride=65 is more than the window of 64 pixels"),
        ({"short_side": 8}, r"short_side must be an integer from 32 on, not 8"),
        ({"batch_size": 0}, r"batch_size must be an integer from 1 on, not 0"),
        ({"logit_scale": 0}, r"logit_scale must be a number above 0, not 0"),
        ({"method": "raw"}, r'method="raw" is not in the space of the texts'),
        ({"affinity": 3}, r"affinity must be a function of images and their grid, not 3"),
        ({"method": "best"}, r"method must be one of neighbors, values, queries.*not 'best'"),
    ],
)
def test_impossible_options_are_refused(options: Any, message: str, tiny: CLIP) -> None:
    with pytest.raises(ConfigError, match=message):
        class_map(tiny, CAT, NAMES, **options)


def test_what_cannot_be_mapped_is_refused(tiny: CLIP) -> None:
    with pytest.raises(ConfigError, match="a class is named 'background', as the last row"):
        class_map(tiny, CAT, ["cat", "background"], background=0.5)
    with pytest.raises(ConfigError, match=r"class_map looks into a clipkit\.CLIP, not a Linear"):
        class_map(torch.nn.Linear(1, 1), CAT, NAMES)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ImageError, match=r"cannot find .*none\.jpg"):
        class_map(tiny, "none.jpg", NAMES)
    with pytest.raises(ImageError, match=r"\(3, height, width\), not \(1, 3, 64, 64\): pass"):
        class_map(tiny, torch.zeros(1, 3, 64, 64), NAMES)
    size: Any = (0, 5)
    with pytest.raises(ConfigError, match=r"size must be \(height, width\).* not \(0, 5\)"):
        inspect.ClassMapper(tiny, NAMES)(CAT, size=size)
    vit: Any = random_vit()
    vit.visual.proj = None
    with pytest.raises(ConfigError, match=r"class_map compares .* visual\.proj, .* taken away"):
        class_map(vit, CAT, NAMES)
    model = CLIP.from_pretrained("tiny", device="cpu", preprocess=lambda image: image)
    with pytest.raises(ConfigError, match=r"function, cannot do: set model\.preprocess"):
        class_map(model, CAT, NAMES)
    model.preprocess = Preprocess(model.config.vision.resolution, model.config.preprocess)
    assert class_map(model, CAT, NAMES).shape[0] == 3


def test_texts_follow_the_model_to_another_device() -> None:
    model = CLIP.from_pretrained("tiny", device="cpu")
    mapper = inspect.ClassMapper(model, NAMES)
    model.to("meta")
    cosines = mapper._cosines(torch.zeros(2, 3, 96, 96, device="meta"))  # pyright: ignore[reportPrivateUsage]
    assert cosines.device.type == "meta"


def test_two_photos_side_by_side_are_told_apart(tiny: CLIP) -> None:
    """The embedded model is small, but tells a cat from a rocket that stands beside it."""
    both = Image.new("RGB", (384, 192))
    for place, name in enumerate(("cat", "rocket")):
        photo = Image.open(CAT.with_name(f"{name}.jpg")).convert("RGB").resize((192, 192))
        both.paste(photo, (192 * place, 0))
    scores = class_map(tiny, both, ["cat", "rocket"], "imagenet")
    assert scores[0, :, :160].mean() > 0.8
    assert scores[1, :, 224:].mean() > 0.7


def test_the_default_device_of_torch_does_not_matter(tiny: CLIP) -> None:
    mapper = inspect.ClassMapper(tiny, NAMES, background=0.5, refine=True)
    expected = mapper(CAT)
    torch.set_default_device("meta")
    try:
        found = inspect.ClassMapper(tiny, NAMES, background=0.5, refine=True)(CAT)
        indices = mapper.indices(CAT)
    finally:
        torch.set_default_device(None)
    assert torch.equal(found, expected)
    assert torch.equal(indices, expected.argmax(dim=0))
