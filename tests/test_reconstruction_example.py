"""The VQ-VAE of the example follows the paper, and the script runs on folders of images."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import clipkit
from tests.helpers.toy_data import color_folders, toy_config

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def example() -> Iterator[Any]:
    """Return the example as a module. It imports the scripts beside it."""
    present = set(sys.modules)
    sys.path.insert(0, str(EXAMPLES))
    yield importlib.import_module("reconstruction")
    sys.path.remove(str(EXAMPLES))
    for name in set(sys.modules) - present:
        if str(EXAMPLES) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def parts(example: Any) -> Any:
    """Return the module of the VQ-VAE's parts, which the example imports."""
    return sys.modules["vq_vae"]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_codes_are_moving_averages_of_the_vectors_that_choose_them(parts: Any) -> None:
    book = parts.Codebook(5, 3, decay=0.9, dead=0.0).train()
    book.codes.copy_(drawn(5, 3))
    book.counts.copy_(torch.arange(1.0, 6.0))
    book.sums.copy_(book.codes * book.counts[:, None])
    book.started.fill_(True)
    codes, counts = book.codes.double().numpy(), book.counts.double().numpy()
    sums = codes * counts[:, None]
    for step in range(4):
        x = drawn(2, 3, 4, 2, seed=step + 1)
        vectors = x.double().numpy().transpose(0, 2, 3, 1).reshape(-1, 3)
        nearest = ((vectors[:, None] - codes) ** 2).sum(axis=2).argmin(axis=1)
        found = book(x)
        np.testing.assert_array_equal(found.indices.flatten().numpy(), nearest)
        chosen = codes[nearest].reshape(2, 4, 2, 3).transpose(0, 3, 1, 2)
        np.testing.assert_allclose(found.codes.numpy(), chosen, atol=1e-5)
        assert found.commitment.item() == pytest.approx(((x.numpy() - chosen) ** 2).mean(), 1e-5)
        own = nearest[:, None] == np.arange(5)  # (vectors, codes)
        counts = 0.9 * counts + 0.1 * own.sum(axis=0)
        sums = 0.9 * sums + 0.1 * own.T.astype(np.float64) @ vectors
        codes = sums / counts[:, None]
        np.testing.assert_allclose(book.codes.numpy(), codes, atol=1e-5)
        np.testing.assert_allclose(book.counts.numpy(), counts, rtol=1e-5)


def test_the_gradient_goes_straight_through_the_codes(parts: Any) -> None:
    book = parts.Codebook(4, 3).eval()
    x = drawn(2, 3, 2, 2).requires_grad_()
    slope = drawn(2, 3, 2, 2, seed=1)
    (book(x).codes * slope).sum().backward()
    torch.testing.assert_close(x.grad, slope)


def test_the_commitment_draws_the_map_to_its_codes(parts: Any) -> None:
    book = parts.Codebook(4, 3).eval()
    x = drawn(2, 3, 2, 2).requires_grad_()
    found = book(x)
    found.commitment.backward()
    torch.testing.assert_close(x.grad, 2 * (x - found.codes).detach() / x.numel())


def test_the_first_batch_gives_the_first_codes(parts: Any) -> None:
    book = parts.Codebook(6, 3, decay=1.0, dead=0.0).train()
    x = drawn(4, 3, 2, 2)
    book(x)
    vectors = {tuple(row) for row in x.permute(0, 2, 3, 1).reshape(-1, 3).tolist()}
    distances = torch.cdist(book.codes, torch.tensor(sorted(vectors)))
    assert distances.min(dim=1).values.max() < 1e-5
    assert book.counts.tolist() == pytest.approx([16 / 6] * 6)


def test_a_dead_code_starts_anew_from_the_batch_and_others_stay(parts: Any) -> None:
    book = parts.Codebook(3, 2, dead=0.5)
    before = book.codes.clone()
    book.counts.copy_(torch.tensor([4.0, 0.1, 4.9]))
    book.restart(torch.full((7, 2), 9.0))
    assert book.codes[1].tolist() == [9.0, 9.0]
    assert book.counts.tolist() == pytest.approx([4.0, 3.0, 4.9])
    torch.testing.assert_close(book.sums[1], torch.tensor([27.0, 27.0]))
    torch.testing.assert_close(book.codes[[0, 2]], before[[0, 2]])


def test_in_eval_mode_the_codes_stay(parts: Any) -> None:
    book = parts.Codebook(4, 3).eval()
    before = {name: value.clone() for name, value in book.state_dict().items()}
    book(drawn(2, 3, 2, 2))
    for name, value in book.state_dict().items():
        torch.testing.assert_close(value, before[name])


@pytest.mark.parametrize(
    ("grid", "size", "side"), [(3, 96, 96), (2, 64, 64), (7, 224, 224), (16, 224, 128), (1, 33, 32)]
)
def test_a_decoder_doubles_the_grid_up_to_the_image(
    parts: Any, grid: int, size: int, side: int
) -> None:
    assert parts.side_of(grid, size) == side
    decoder = parts.Decoder(4, grid, side)
    assert decoder(torch.zeros(1, 4, grid, grid)).shape == (1, 3, side, side)


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_a_tower_gives_the_map_that_is_frozen(parts: Any, kind: str) -> None:
    if kind == "vit":
        model = clipkit.CLIP(toy_config()).eval()
    else:
        model = clipkit.CLIP.from_pretrained("tiny", device="cpu")
    images, block = drawn(2, 3, 64, 64), 1
    with torch.no_grad():
        expected = clipkit.inspect.dense_features(model, images, "raw", after_block=block)
        torch.testing.assert_close(parts.Tower(model.visual, block)(images), expected)


def test_without_codes_the_map_goes_on_as_it_is(parts: Any) -> None:
    plain = parts.VQVAE(torch.nn.Identity(), channels=5, grid=2, side=8, codes=0).eval()
    found = plain(drawn(3, 5, 2, 2))
    assert found.images.shape == (3, 3, 8, 8)
    assert found.indices is None
    with pytest.raises(ValueError, match="no codes to draw from"):
        plain.decode(torch.zeros(1, 2, 2, dtype=torch.int64))


def test_codes_are_drawn_again_as_they_were(parts: Any) -> None:
    vae = parts.VQVAE(torch.nn.Identity(), channels=5, grid=2, side=8, codes=6).eval()
    found = vae(drawn(3, 5, 2, 2))
    torch.testing.assert_close(vae.decode(found.indices), found.images)


def test_measures_of_known_images(example: Any) -> None:
    errors = example.squared_errors(
        torch.tensor([0.5, 2.0]).view(2, 1, 1, 1), torch.ones(2, 1, 1, 1)
    )
    assert errors.tolist() == [0.25, 0.0]
    assert example.psnr(torch.tensor([0.01, 0.0001])) == pytest.approx(30)
    assert example.perplexity(torch.tensor([[[0, 1], [2, 3]]]), 9) == pytest.approx(4)
    assert example.perplexity(torch.tensor([[[5, 5], [5, 5]]]), 9) == pytest.approx(1)
    flat = torch.full((1, 3, 8, 8), 0.4)
    torch.testing.assert_close(example.shrunk_and_enlarged(flat, 2), flat)


def test_random_codes_by_place_are_those_that_a_place_has(example: Any) -> None:
    indices = torch.arange(4).view(1, 2, 2) + 10 * torch.arange(3).view(3, 1, 1)
    torch.manual_seed(0)
    uniform, by_place = example.random_codes(indices, 40, 50)
    assert uniform.shape == by_place.shape == (50, 2, 2)
    assert uniform.max() > 30
    assert torch.equal(by_place % 10, torch.arange(4).view(1, 2, 2).expand(50, 2, 2))
    assert len({tuple(row) for row in (by_place // 10).flatten(1).tolist()}) > 10


def test_the_script_writes_results_and_figures(
    example: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    color_folders(tmp_path / "colors" / "test", each=6)
    command = ["reconstruction.py", "--data", f"cifar100={tmp_path / 'colors'}", "--images", "16"]
    command += ["--held-out", "8", "--steps", "3", "--batch-size", "4", "--codes", "8"]
    command += ["--seeds", "2", "--after-block", "-1", "1"]
    out = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(out), "--figures", str(tmp_path)])
    example.main()
    found = json.loads(out.read_text("utf-8"))
    assert [row["grid"] for row in found["rows"]] == [2] * 6 + [8] * 6
    assert [row["arm"] for row in found["rows"][:3]] == list(example.ARMS)
    assert [row.get("bits") for row in found["rows"][-3:]] == [192, 192, None]
    assert found["rows"][0]["curve"]["steps"] == [1, 2, 3]
    assert found["settings"]["codes"] == 8
    assert list(found["thumbnails"]) == ["2", "8"]
    assert "| -1 | 2 x 2 | 12 | trained |" in capsys.readouterr().out
    names = ["curves.png", "samples.jpg"]
    for name in ["frozen_reconstruction.jpg", *(f"frozen_reconstruction_{n}" for n in names)]:
        assert (tmp_path / name).stat().st_size < 60_000
        with Image.open(tmp_path / name) as figure:
            assert figure.size[0] > 400


def test_three_depths_are_the_default(example: Any) -> None:
    tiny = clipkit.CLIP.from_pretrained("tiny", device="cpu")
    assert example.default_blocks(tiny.visual) == [3, 2, 1]
    assert example.default_blocks(clipkit.CLIP(toy_config()).visual) == [1, 0]
