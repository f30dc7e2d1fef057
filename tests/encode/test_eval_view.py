"""clipkit.encode.eval_view: encoding leaves modes and statistics alone, whatever runs beside it."""

import functools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from clipkit import CLIP, CLIPConfig, PreprocessConfig, ResNetConfig
from clipkit.encode.embed import embed_images, embed_texts, stream_features
from clipkit.encode.eval_view import eval_view
from clipkit.encode.store import extract_features
from clipkit.tokenizer import Tokenizer
from tests.helpers.models import assert_same_weights
from tests.helpers.noise import noise
from tests.helpers.toy_data import toy_config

THREADS = 8


@pytest.fixture
def resnet_in_training(small_tokenizer: Tokenizer) -> CLIP:
    """Return a model in train mode: in half of its modules, as where some are frozen."""
    torch.manual_seed(0)
    config = CLIPConfig(
        embed_dim=32,
        vision=ResNetConfig(resolution=(32, 32), layers=(1, 1, 1, 1), width=8, head_width=16),
        text=toy_config().text,
        preprocess=PreprocessConfig(),
    )
    model = CLIP(config, small_tokenizer).train()
    for module in list(model.modules())[::2]:
        module.training = False
    return model


def modes_of(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_threads_get_the_same_and_change_nothing(resnet_in_training: CLIP) -> None:
    model = resnet_in_training
    images = [noise(40, 40, seed=seed) for seed in range(6)]
    modes = modes_of(model)
    state = state_of(model)
    seen: list[list[bool]] = []

    def encode(number: int) -> Tensor:
        if number % 2:
            return embed_images(model, images, batch_size=2)
        parts: list[Tensor] = []
        for part in stream_features(model, images, batch_size=2):
            seen.append(modes_of(model))
            parts.append(part.features)
        return torch.cat(parts)

    with ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(encode, range(3 * THREADS)))
    model.eval()
    expected = embed_images(model, images, batch_size=2)
    for result in results:
        assert torch.equal(result, expected)
    assert seen == [modes] * len(seen)
    assert_same_weights(model.state_dict(), state)


@pytest.mark.parametrize("mode", [True, False])
def test_every_way_to_encode_keeps_the_modes(
    resnet_in_training: CLIP, tmp_path: Path, mode: bool
) -> None:
    model = resnet_in_training.train(mode)
    state = state_of(model)
    images = [noise(40, 40, seed=seed) for seed in range(3)]
    results = [
        embed_images(model, images),
        extract_features(model, images).features,
        extract_features(model, images, out=tmp_path / "features.safetensors").features,
        next(stream_features(model, images)).features,
    ]
    embed_texts(model, ["a cat"])
    assert set(modes_of(model)) == {mode}
    assert_same_weights(model.state_dict(), state)
    for result in results:
        assert torch.equal(result, embed_images(model.eval(), images))


def test_an_error_keeps_the_modes(resnet_in_training: CLIP, tmp_path: Path) -> None:
    modes = modes_of(resnet_in_training)
    with pytest.raises(ValueError, match="cannot find"):
        embed_images(resnet_in_training, [noise(40, 40), tmp_path / "nothing.png"])
    stream = stream_features(resnet_in_training, [noise(40, 40)] * 4, batch_size=1)
    next(stream)  # and never finished
    assert modes_of(resnet_in_training) == modes


# The view


class Tower(nn.Module):
    """Compute what differs between the modes: dropout, batch norm and a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout()
        self.linear = nn.Linear(4, 4)
        self.again = self.linear
        self.nothing = None

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x + 1
        return self.again(self.linear(self.drop(self.norm(x))))


@pytest.fixture
def tower() -> Tower:
    torch.manual_seed(0)
    return Tower().train()


@pytest.fixture
def rows() -> Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


def assert_unharmed(tower: nn.Module, view: nn.Module, rows: Tensor) -> None:
    """Fail unless the view computes what eval mode does, while the original stays as it is."""
    modes = modes_of(tower)
    state = state_of(tower)
    with torch.no_grad():
        found = view(rows)
    assert modes_of(tower) == modes
    assert_same_weights(tower.state_dict(), state)
    with torch.no_grad():
        assert torch.equal(found, tower.eval()(rows))


def test_a_view_shares_weights_and_statistics(tower: Tower, rows: Tensor) -> None:
    view = eval_view(tower)
    assert type(view) is Tower
    assert not any(modes_of(view))
    assert view.linear is view.again
    assert view.linear is not tower.linear
    for name, value in tower.named_parameters():
        assert view.get_parameter(name) is value
    for name, value in tower.named_buffers():
        assert view.get_buffer(name) is value
    with torch.no_grad():
        tower.linear.weight.mul_(2)
    tower.norm(rows + 3)
    assert_unharmed(tower, view, rows)


def test_what_is_in_eval_mode_or_no_module_is_returned_as_it_is(tower: Tower) -> None:
    tower.eval()
    assert eval_view(tower) is tower
    other = object()
    assert eval_view(other) is other


def test_a_frozen_root_with_a_trained_child_gets_a_view(tower: Tower, rows: Tensor) -> None:
    tower.training = False
    assert eval_view(tower) is not tower
    assert_unharmed(tower, eval_view(tower), rows)


def test_methods_that_were_replaced_do_not_lead_back(tower: Tower, rows: Tensor) -> None:
    """Libraries that wrap modules set a bound method or a partial function as `forward`."""

    def wrapped(module: Tower, x: Tensor) -> Tensor:
        return 2 * Tower.forward(module, x)

    tower.__dict__["forward"] = functools.partial(wrapped, tower)
    assert_unharmed(tower, eval_view(tower), rows)
    tower.train()
    tower.__dict__["forward"] = wrapped.__get__(tower)
    assert_unharmed(tower, eval_view(tower), rows)


def test_compiled_modules_do_not_lead_back(tower: Tower, rows: Tensor) -> None:
    """`module.compile()` keeps a compiled call of the original; `torch.compile` wraps it."""
    tower.__dict__["_compiled_call_impl"] = lambda x: Tower.forward(tower, x)
    assert_unharmed(tower, eval_view(tower), rows)
    tower.train()
    tower.__dict__["_compiled_call_impl"] = None
    wrapper = nn.Module()
    wrapper.add_module("_orig_mod", tower)
    wrapper.__dict__["forward"] = lambda x: Tower.forward(tower, x)
    view = eval_view(nn.Sequential(wrapper))
    assert_unharmed(tower, view, rows)


def test_parametrized_modules(rows: Tensor) -> None:
    """They refuse to be pickled, and so to be copied by most means."""
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    module = nn.Sequential(layer, nn.Dropout()).train()
    assert_unharmed(module, eval_view(module), rows)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_scripted_modules(rows: Tensor) -> None:
    scripted: Any = torch.jit.script(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4)))
    module = nn.Sequential(scripted, nn.Dropout()).train()
    assert_unharmed(module, eval_view(module), rows)
    module.train()
    assert_unharmed(scripted, eval_view(scripted), rows)


def test_an_image_without_a_batch_in_train_mode() -> None:
    """A batch of one image has no variance: in train mode the statistics would break."""
    module = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3)).train()

    def transform(image: Image.Image) -> Tensor:
        return torch.tensor(image.resize((1, 1)).getpixel((0, 0))).view(3, 1, 1) / 255

    result = extract_features(module, [noise()], transform=transform, normalize=False)
    assert torch.isfinite(result.features).all()
