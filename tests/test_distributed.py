"""Several processes must compute what one computes: losses, gradients, whole training curves."""

import copy
import json
import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn

from clipkit import CLIP, distributed
from clipkit.clip import decide_device
from clipkit.errors import ConfigError
from clipkit.files import lock
from clipkit.training import losses
from clipkit.training.config import TrainConfig
from clipkit.training.loop import Trainer
from clipkit.training.losses import clip_loss, sigmoid_loss
from clipkit.training.recompute import cached_features
from clipkit.training.tasks import ClassificationTask
from tests.helpers import finetune_worker, training_worker
from tests.helpers.processes import launch, rank_variables
from tests.helpers.toy_data import color_folders
from tests.helpers.training_worker import losses as logged
from tests.helpers.training_worker import rows_of_log, run, state_of, toy_batches, toy_model

Loss = Callable[..., Tensor]
CASES: list[tuple[Loss, int]] = [(clip_loss, 2**23), (clip_loss, 20), (sigmoid_loss, 2**23)]


# Losses and gradients


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 5))


def pairs() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    return torch.randn(12, 6, generator=random), torch.randn(12, 6, generator=random)


class Pair(nn.Module):
    """Send both inputs through one encoder, and what comes out through a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = encoder()
        self.scale = nn.Parameter(torch.tensor(2.5))

    def forward(self, x: Tensor, y: Tensor, loss: Loss, group: dist.ProcessGroup | None) -> Tensor:
        return loss(cached_features(self.encoder, x, 2), self.encoder(y), self.scale, group)


def work(rank: int, world: int, folder: str) -> None:
    """Compute loss and gradients of each case in one of the processes, and keep them."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    results: list[tuple[Tensor, list[Tensor | None]]] = []
    for loss, tile in CASES:
        losses.TILE = tile
        share = [x.tensor_split(world)[rank] for x in pairs()]
        model = nn.parallel.DistributedDataParallel(Pair())
        value = model(*share, loss, distributed.group())
        value.backward()
        results.append((value.detach(), [p.grad for p in model.parameters()]))
    assert distributed.rank() == rank
    assert distributed.world_size() == world
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_loss_and_gradients_equal_one_process(world: int, tmp_path: Path) -> None:
    multiprocessing.spawn(work, (world, str(tmp_path)), nprocs=world)  # pyright: ignore[reportPrivateImportUsage]
    for rank in range(world):
        results = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for (loss, _), (value, gradients) in zip(CASES, results, strict=True):
            alone = Pair()
            expected = alone(*pairs(), loss, None)
            expected.backward()
            torch.testing.assert_close(value, expected.detach(), rtol=1e-6, atol=1e-6)
            for ours, parameter in zip(gradients, alone.parameters(), strict=True):
                torch.testing.assert_close(ours, parameter.grad, rtol=1e-5, atol=1e-6)


def test_one_process_needs_no_group() -> None:
    assert distributed.group() is None
    assert distributed.rank() == 0
    assert distributed.world_size() == 1
    assert distributed.is_first()
    x = torch.ones(2, 3)
    assert distributed.gather(x, None) is x
    assert distributed.sum_over_ranks(x, None) is x
    assert distributed.gather_objects("x") == ["x"]


# Devices


def test_cuda_is_this_process_s_own_card(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    assert distributed.local_card(cuda) == cuda
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert distributed.local_card(cuda) == torch.device("cuda:3")
    for other in ("cuda:1", "cpu", "mps"):
        assert distributed.local_card(torch.device(other)) == torch.device(other)


@pytest.mark.parametrize("device", ["cuda", torch.device("cuda")])
def test_a_process_without_a_card_says_so(
    device: str | torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", str(torch.cuda.device_count() + 1))
    with pytest.raises(ConfigError, match=r"there is no device 'cuda:\d+' here"):
        decide_device(device)


@pytest.mark.parametrize(
    ("device", "local_rank", "expected"),
    [("cuda", "3", "cuda:3"), ("cuda:1", "3", "cuda:1"), ("cuda", None, "cuda:5")],
)
def test_a_group_on_cuda_gets_a_card_with_its_number(
    device: str, local_rank: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch refuses "cuda" alone. A launcher without LOCAL_RANK has chosen the card before."""
    for name, value in rank_variables(3, 4, 1).items():
        monkeypatch.setenv(name, value)
    if local_rank is None:
        monkeypatch.delenv("LOCAL_RANK")
    asked: dict[str, Any] = {}

    def init(backend: str, device_id: torch.device) -> None:
        asked.update(backend=backend, device_id=device_id)

    monkeypatch.setattr(dist, "init_process_group", init)
    monkeypatch.setattr(torch.cuda, "set_device", lambda card: asked.update(card=card))  # pyright: ignore[reportUnknownLambdaType]
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 5)
    distributed.start(torch.device(device))
    card = torch.device(expected)
    assert asked == {"backend": "nccl", "device_id": card, "card": card}


def test_the_launcher_says_who_writes_before_there_is_a_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for rank in range(2):
        for name, value in rank_variables(rank, 2, 1).items():
            monkeypatch.setenv(name, value)
        assert distributed.is_first() == (rank == 0)
    monkeypatch.delenv("MASTER_ADDR")  # RANK alone, as some schedulers set it, is no group
    assert distributed.is_first()


# Training


def torchrun(world: int, out: Path, values: str, *stop_at: str, code: int = 0) -> None:
    script = Path(training_worker.__file__)
    launch(world, [str(script), str(out), values, *stop_at], code)


# Clipping, decay and caching take part. Sums of float32 in another order are all that differs.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "extra"),
    [(4, '"micro_batch": 1'), (2, '"shard": true, "recompute": true')],
    ids=["DDP on 4", "FSDP on 2"],
)
def test_the_curve_is_that_of_one_process(world: int, extra: str, tmp_path: Path) -> None:
    model = run(tmp_path / "one", steps=10)
    torchrun(world, tmp_path / "many", f'{{"steps": 10, {extra}}}')
    one = logged(tmp_path / "one")
    many = logged(tmp_path / "many")
    assert one.keys() == many.keys() == set(range(1, 11))
    assert many == pytest.approx(one, rel=1e-4)
    assert one[1] - one[10] > 0.01  # it learns, or the curve would be flat
    other = CLIP.from_pretrained(tmp_path / "many" / "model", device="cpu")
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)
    assert state_of(tmp_path / "many")["step"] == 10


def test_sharding_refuses_what_it_cannot_split(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, resnet: CLIP
) -> None:
    monkeypatch.setattr(distributed, "group", lambda: object())
    config = TrainConfig(steps=1, shard=True)
    for task in (copy.deepcopy(resnet), ClassificationTask(toy_model(), nn.Linear(32, 2))):
        with pytest.raises(ConfigError, match="shard splits a CLIP of two transformers"):
            Trainer(task, toy_batches, config, tmp_path, device="cpu")


@pytest.mark.slow
def test_a_sharded_run_goes_on(tmp_path: Path) -> None:
    """Stopped by a signal to all its processes and started again, it is as if never stopped."""
    values = '{"steps": 6, "shard": true, "save_every": 0, "evaluate_every": 2}'
    torchrun(2, tmp_path / "whole", values)
    torchrun(2, tmp_path / "part", values, "2", "SIGTERM", code=128 + 15)
    assert logged(tmp_path / "part").keys() == {1, 2, 3}
    torchrun(2, tmp_path / "part", values)
    assert logged(tmp_path / "part") == pytest.approx(logged(tmp_path / "whole"), rel=1e-6)
    # The split model can be asked for features.
    measured = ["answer" in row for row in rows_of_log(tmp_path / "whole")]
    assert measured == [False, True] * 3


# Fine-tuning

FINETUNE = str(Path(finetune_worker.__file__))


@pytest.fixture
def images(tmp_path: Path) -> str:
    """Return a folder of 12 images of 4 classes."""
    return str(color_folders(tmp_path / "images", each=3))


def weights_of(out: Path, rank: int) -> dict[str, Tensor]:
    return torch.load(out / f"{rank}.pt", weights_only=True)


@pytest.mark.slow
def test_processes_fine_tune_one_classifier(images: str, tmp_path: Path) -> None:
    """They share the images of the head, then those of each batch. Sums differ in their order."""
    launch(1, [FINETUNE, "tower", images, str(tmp_path / "one")])
    launch(2, [FINETUNE, "tower", images, str(tmp_path / "two")])
    expected = weights_of(tmp_path / "one", 0)
    for rank in range(2):
        found = weights_of(tmp_path / "two", rank)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=2e-3)
    assert not (tmp_path / "two" / "saved by 1").exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["head", "head in a group"])
def test_one_process_alone_fits_a_head(how: str, images: str, tmp_path: Path) -> None:
    """The other one never calls `finetune`. Nothing waits for it, and no group is started."""
    launch(2, [FINETUNE, how, images, str(tmp_path)])
    assert (tmp_path / "0.pt").exists()
    assert not (tmp_path / "1.pt").exists()
    assert (tmp_path / "out" / "head.safetensors").exists()


@pytest.mark.slow
def test_processes_without_a_group_write_one_classifier(images: str, tmp_path: Path) -> None:
    """All of them fit the head, each for itself. The first one saves."""
    launch(2, [FINETUNE, "head in all", images, str(tmp_path)])
    second = weights_of(tmp_path, 1)
    for name, value in weights_of(tmp_path, 0).items():
        assert torch.equal(second[name], value), name
    assert (tmp_path / "saved by 0").exists()
    assert not (tmp_path / "saved by 1").exists()


ENDING = """
import atexit, json, os, sys
from pathlib import Path

def print_threads():
    tasks = Path("/proc/self/task").iterdir()
    names = [(task / "comm").read_text().strip() for task in tasks]
    Path(sys.argv[1], f"threads {os.environ['RANK']}").write_text(json.dumps(names))

atexit.register(print_threads)  # the first to be registered is the last to be called
from clipkit.errors import OutputError
from tests.helpers.training_worker import main
try:
    main(*sys.argv[1:], leave=False)
except OutputError as error:  # what holds an error in a circle, the collector has to find
    error.circle = error
    sys.exit(3)
"""


@pytest.mark.parametrize(
    ("signals", "held", "code"),
    [
        pytest.param([], False, 0, id="done"),
        pytest.param(["3", "SIGINT"], False, -signal.SIGINT, id="Ctrl-C"),
        pytest.param([], True, 3, id="error"),
    ],
)
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads the threads of Linux")
def test_no_thread_of_the_group_is_left_when_python_ends(
    signals: list[str], held: bool, code: int, tmp_path: Path
) -> None:
    """One that asks for Python while it ends aborts the process, at times.

    After FSDP some are left: caches of torch itself hold the group.
    """
    with lock(tmp_path) if held else nullcontext():
        launch(2, ["-c", ENDING, str(tmp_path), '{"steps": 5}', *signals], code=code)
    for rank in range(2):
        names = json.loads((tmp_path / f"threads {rank}").read_text())
        assert names
        assert not [name for name in names if "gloo" in name or "tcpstore" in name]
