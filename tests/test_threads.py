"""clipkit.threads, and the batches that they encode: processors are shared, features stay."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.thread import BrokenThreadPool
from contextlib import AbstractContextManager, closing
from pathlib import Path
from threading import Thread
from typing import Any, NoReturn

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from clipkit import CLIP, Tokenizer, threads
from clipkit.config import PreprocessConfig
from clipkit.data.pictures import Images, ImageSet
from clipkit.data.preprocess import Preprocess
from clipkit.encode import batches
from clipkit.encode.batches import choose_way
from clipkit.encode.embed import embed_images, stream_features
from clipkit.encode.features import join
from clipkit.encode.image_encoder import ImageEncoder
from clipkit.search.model_encoder import ModelEncoder
from clipkit.threads import images_at_once, in_order, sharing_threads
from tests.helpers.models import RESNET, random_clip
from tests.helpers.toy_data import toy_config, two_colors


@pytest.fixture
def six_processors() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("six_processors")
def test_each_thread_has_its_share_and_nobody_else() -> None:
    all_there = threading.Barrier(3)

    def ask(_: int) -> int:
        torch.mm(torch.rand(64, 64), torch.rand(64, 64))
        all_there.wait(10)  # so that each of the three answers once
        return torch.get_num_threads()

    with sharing_threads(3) as threads:
        assert list(threads.map(ask, range(3))) == [2, 2, 2]
        assert torch.get_num_threads() == 6
        found: list[int] = []
        later = Thread(target=lambda: found.append(torch.get_num_threads()))
        later.start()
        later.join()
        assert found == [6]
    assert torch.get_num_threads() == 6


@pytest.mark.usefixtures("six_processors")
def test_more_threads_than_processors_have_one_each() -> None:
    with sharing_threads(8) as threads:
        assert threads.submit(torch.get_num_threads).result() == 1


def number_of_a_new_thread() -> int:
    """Return how many processors torch has in a thread that begins now."""
    found: list[int] = []
    thread = Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.usefixtures("six_processors")
def test_threads_of_a_thread_divide_its_share_and_leave_that_of_the_process() -> None:
    def divide() -> list[int]:
        with sharing_threads(2) as inner:
            return [inner.submit(torch.get_num_threads).result(), torch.get_num_threads()]

    with sharing_threads(3) as outer:
        assert outer.submit(divide).result() == [1, 2]
    assert number_of_a_new_thread() == 6


class _NoThread:
    """Be a thread of a system that has no more of them."""

    def __init__(self, target: Callable[[], object]) -> None:
        self.target = target

    def start(self) -> NoReturn:
        raise RuntimeError("can't start new thread")


@pytest.mark.usefixtures("six_processors")
def test_a_thread_that_cannot_be_had_leaves_the_number_of_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "Thread", _NoThread)
    with sharing_threads(2) as pool, pytest.raises(BrokenThreadPool, match="initializer"):
        pool.submit(torch.get_num_threads).result()
    assert number_of_a_new_thread() == 6


@pytest.mark.parametrize(
    ("batch_size", "count", "images"),
    [(64, 2, 32), (64, 8, 8), (64, 7, 10), (32, 8, 8), (5, 2, 5), (1, 8, 1)],
)
def test_threads_divide_the_images_of_a_batch(batch_size: int, count: int, images: int) -> None:
    assert images_at_once(batch_size, count) == images


def test_results_come_in_order_and_few_are_begun() -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        return item * item

    with sharing_threads(2) as threads:
        results = in_order(threads, work, iter(range(20)), ahead=3)
        assert next(results) == 0
        assert max(begun) <= 2
        assert list(results) == [item * item for item in range(1, 20)]


def test_what_has_not_begun_is_dropped_when_the_results_are_closed() -> None:
    gate, begun = threading.Event(), list[int]()

    def work(item: int) -> int:
        begun.append(item)
        if item:
            gate.wait(10)
        return item

    with sharing_threads(1) as threads:
        with closing(in_order(threads, work, range(9), ahead=5)) as results:
            assert next(results) == 0
        gate.set()
    assert begun in ([0], [0, 1])


def test_an_error_of_a_thread_is_raised_here() -> None:
    def work(item: int) -> int:
        return 1 // (item - 2)

    with sharing_threads(2) as threads, pytest.raises(ZeroDivisionError):
        list(in_order(threads, work, range(5), ahead=2))


@pytest.fixture(scope="module")
def model(small_tokenizer: Tokenizer) -> CLIP:
    torch.manual_seed(0)
    return CLIP(toy_config(), small_tokenizer).eval()


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Return 23 files, of which two cannot be read."""
    paths = [tmp_path / f"{number:02}.png" for number in range(23)]
    for number, path in enumerate(paths):
        two_colors((11 * number, 0, 90), (0, 9 * number, 30), seed=number).save(path)
    paths[4].write_bytes(b"no image")
    paths[22].unlink()
    return paths


@pytest.mark.parametrize("batch_size", [2, 5, 64])
@pytest.mark.parametrize("way", ["_side_by_side", "_read_ahead", "_by_loader"])
def test_every_way_gives_the_same(
    model: CLIP, files: list[Path], way: str, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "computing_threads", lambda: 3)
    rows = [(path, number % 4) for number, path in enumerate(files)]
    image_set = ImageSet(rows, model.preprocess, batch_size)
    indices = [batch for chunk in image_set.chunks.values() for batch in chunk]
    found = join(list(getattr(batches, way)(ImageEncoder(model), image_set, indices)))
    sound = [number for number in range(23) if number not in (4, 22)]
    assert found.paths == [str(files[number]) for number in sound]
    assert [path for path, _ in found.skipped] == [str(files[4]), str(files[22])]
    assert found.labels is not None
    assert found.labels.tolist() == [number % 4 for number in sound]
    for row, number in enumerate(sound):
        with Image.open(files[number]) as image:
            alone = embed_images(model, [image])
        torch.testing.assert_close(found.features[row : row + 1], alone, rtol=1e-5, atol=1e-6)


@pytest.fixture
def three_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "computing_threads", lambda: 3)


def way_of(model: nn.Module, images: Images, count: int = 6, workers: int = 0) -> str:
    """Return the name of the way that is chosen for so many batches of images."""
    image_set = ImageSet(images, Preprocess((8, 8), PreprocessConfig()), workers=workers)
    return choose_way(ImageEncoder(model), image_set, count).__name__


@pytest.mark.usefixtures("three_threads")
def test_threads_encode_side_by_side_where_nobody_would_notice(
    model: CLIP, files: list[Path]
) -> None:
    assert way_of(model, files) == "_side_by_side"
    assert way_of(model, [path.read_bytes() for path in files[:4]]) == "_side_by_side"
    assert way_of(model.optimize(), files) == "_side_by_side"
    assert way_of(random_clip(RESNET).eval(), files) == "_side_by_side"
    assert way_of(model, files, count=5) == "_read_ahead"  # one of the threads would have no second


@pytest.mark.usefixtures("three_threads")
def test_images_that_threads_might_not_share_are_read_in_turn(
    model: CLIP, files: list[Path]
) -> None:
    with Image.open(files[0]) as lazy:  # Pillow reads it when it is used
        assert way_of(model, [lazy]) == "_by_loader"
    assert way_of(model, list(zip(files, range(23), strict=True))) == "_side_by_side"
    assert way_of(model, files, workers=2) == "_by_loader"
    image_set = ImageSet(files, lambda path: torch.rand(3, 8, 8))
    assert choose_way(ImageEncoder(model), image_set, 6).__name__ == "_by_loader"


class Remembering(nn.Module):
    """Keep what it saw last."""

    def forward(self, image: Tensor) -> Tensor:
        self.last = image
        return image.flatten(1)


@pytest.mark.usefixtures("three_threads")
def test_models_that_threads_might_not_share_encode_in_one(
    small_tokenizer: Tokenizer, files: list[Path]
) -> None:
    assert way_of(Remembering(), files) == "_read_ahead"
    hooked = CLIP(toy_config(), small_tokenizer).eval()
    handle = hooked.visual.register_forward_hook(lambda *_: None)
    assert way_of(hooked, files) == "_read_ahead"
    handle.remove()
    assert way_of(hooked, files) == "_side_by_side"
    hooked.visual.compile()
    assert way_of(hooked, files) == "_read_ahead"


@pytest.mark.usefixtures("three_threads")
def test_an_autocast_around_the_call_counts(model: CLIP, files: list[Path]) -> None:
    sound = [files[number] for number in (0, 1, 2, 3, 5, 6, 7, 8)]
    plain = embed_images(model, sound, batch_size=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert way_of(model, sound) == "_read_ahead"
        rounded = embed_images(model, sound, batch_size=1)
    chosen = join(list(stream_features(model, sound, batch_size=1, precision="bfloat16")))
    assert not torch.equal(rounded, plain)
    torch.testing.assert_close(rounded, chosen.features)


@pytest.mark.usefixtures("three_threads")
def test_threads_leave_the_number_of_torch_as_it_is(model: CLIP, files: list[Path]) -> None:
    before = torch.get_num_threads()
    embed_images(model, files[5:22], batch_size=2)
    assert torch.get_num_threads() == before


class Counting(TorchFunctionMode):
    """Count the calls of torch's functions in one thread."""

    calls = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        self.calls += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize(
    "mode",
    [
        lambda: FlopCounterMode(display=False),
        Counting,
        lambda: register_module_forward_hook(lambda *_: None),
    ],
    ids=["flops", "functions", "hook"],
)
def test_what_looks_at_one_thread_sees_all(
    model: CLIP, files: list[Path], mode: Callable[[], AbstractContextManager[object]]
) -> None:
    encode = ModelEncoder(model)  # as an index keeps it
    with mode():
        assert way_of(model, files) == "_read_ahead"
        assert not encode.takes_threads
    assert way_of(model, files) == "_side_by_side"
    assert encode.takes_threads


@pytest.mark.usefixtures("three_threads")
def test_operations_are_counted_in_all_batches(model: CLIP, files: list[Path]) -> None:
    with FlopCounterMode(display=False) as one:
        embed_images(model, files[5:6])
    with FlopCounterMode(display=False) as many:
        embed_images(model, files[5:17], batch_size=2)
    assert many.get_total_flops() == 12 * one.get_total_flops()
    assert one.get_total_flops() > 0


@pytest.mark.usefixtures("three_threads")
def test_a_default_device_sees_nothing(model: CLIP, files: list[Path]) -> None:
    with torch.device("cpu"):
        assert way_of(model, files) == "_side_by_side"


@pytest.mark.usefixtures("three_threads")
def test_methods_that_a_program_replaced_are_called_in_one_thread(
    small_tokenizer: Tokenizer, files: list[Path]
) -> None:
    other = CLIP(toy_config(), small_tokenizer).eval()
    encode_image, forward = other.encode_image, other.visual.forward
    vars(other)["encode_image"] = lambda image: encode_image(image)
    assert way_of(other, files) == "_read_ahead"
    del vars(other)["encode_image"]
    assert way_of(other, files) == "_side_by_side"
    vars(other.visual)["forward"] = lambda images: forward(images)
    assert way_of(other, files) == "_read_ahead"


def test_an_encoder_that_is_kept_looks_again(small_tokenizer: Tokenizer) -> None:
    other = CLIP(toy_config(), small_tokenizer).eval()
    encode = ModelEncoder(other)
    assert encode.takes_threads
    with torch.autocast("cpu", torch.bfloat16):
        assert not encode.takes_threads
    with other.visual.register_forward_hook(lambda *_: None):
        assert not encode.takes_threads
    assert encode.takes_threads


class Watched(ImageEncoder):
    """Note how many images come at once, and wait before the first ones are encoded."""

    def __init__(self, model: CLIP) -> None:
        super().__init__(model)
        self.counts: list[int] = []
        self.gate, self.begun = threading.Event(), threading.Event()

    def __call__(self, images: Tensor) -> Tensor:
        self.counts.append(len(images))
        self.begun.set()
        self.gate.wait(10)
        return super().__call__(images)


def watch(
    model: CLIP, files: Sequence[Path], monkeypatch: pytest.MonkeyPatch
) -> tuple[Watched, Iterator[Any]]:
    """Return an encoder, and the features that two threads make by it of batches of 16."""
    monkeypatch.setattr(batches, "computing_threads", lambda: 2)
    encode = Watched(model)
    image_set = ImageSet(files, model.preprocess, 16)
    chosen = [batch for chunk in image_set.chunks.values() for batch in chunk]
    return encode, batches._side_by_side(encode, image_set, chosen)


def test_threads_hold_no_more_images_than_a_batch_has(
    model: CLIP, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, features = watch(model, files[5:21] * 2, monkeypatch)
    encode.gate.set()
    found = list(features)
    assert encode.counts == [8] * 4
    assert [len(part) for part in found] == [16, 16]


def test_nobody_waits_for_the_rest_of_a_batch(
    model: CLIP, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, features = watch(model, files[5:21] * 3, monkeypatch)

    def interrupt(pool: ThreadPoolExecutor, work: Any, items: Any, ahead: int) -> Iterator[Any]:
        begun = [pool.submit(work, item) for item in items]
        encode.begun.wait(10)
        threading.Timer(0.5, encode.gate.set).start()
        if len(begun) < ahead + 1:
            raise KeyboardInterrupt("by hand")
        yield begun

    monkeypatch.setattr(batches, "in_order", interrupt)
    with pytest.raises(KeyboardInterrupt, match="by hand"):
        next(features)
    assert 1 <= len(encode.counts) <= 2  # of the six parts of three batches
