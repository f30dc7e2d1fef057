"""Several processes must compute what one computes: losses, gradients, whole training curves."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn

from clipkit import CLIP, distributed
from clipkit.errors import ConfigError
from clipkit.training import losses
from clipkit.training.loop import Trainer
from clipkit.training.losses import clip_loss, sigmoid_loss
from clipkit.training.config import TrainConfig
from clipkit.training.recompute import cached_features
from clipkit.training.tasks import ClassificationTask
from tests.helpers import training_worker
from tests.helpers.processes import launch
from tests.helpers.training_worker import losses as logged
from tests.helpers.training_worker import run, toy_batches, toy_model

CASES: list[tuple[Callable[..., Tensor], int]] = [
    (clip_loss, 2**23),
    (clip_loss, 20),
    (sigmoid_loss, 2**23),
]


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 5))


def pairs() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    return torch.randn(12, 6, generator=random), torch.randn(12, 6, generator=random)


class Pair(nn.Module):
    """Both inputs through one encoder, and a loss on what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.scale = encoder(), nn.Parameter(torch.tensor(2.5))

    def forward(
        self, x: Tensor, y: Tensor, loss: Callable[..., Tensor], group: dist.ProcessGroup | None
    ) -> Tensor:
        return loss(cached_features(self.encoder, x, 2), self.encoder(y), self.scale, group)


def work(rank: int, world: int, folder: str) -> None:
    """One of the processes: the loss and the gradients of each case, kept for the parent."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    results = []
    for loss, tile in CASES:
        losses.TILE = tile
        share = [x.tensor_split(world)[rank] for x in pairs()]
        model = nn.parallel.DistributedDataParallel(Pair())
        value = model(*share, loss, distributed.group())
        value.backward()
        results.append((value.detach(), [p.grad for p in model.parameters()]))
    assert distributed.rank() == rank and distributed.world_size() == world
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


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
    assert distributed.group() is None and distributed.rank() == 0 and distributed.world_size() == 1
    x = torch.ones(2, 3)
    assert distributed.gather(x, None) is x and distributed.sum_over_ranks(x, None) is x


def torchrun(world: int, out: Path, values: str, *stop_at: str, code: int = 0) -> None:
    script = Path(training_worker.__file__)
    launch(world, [str(script), str(out), values, *stop_at], code)


# Clipping, decay and caching take part. Sums of float32 in another order are all that differs.
@pytest.mark.parametrize(
    "world, extra",
    [(4, '"micro_batch": 1'), (2, '"shard": true, "recompute": true')],
    ids=["DDP on 4", "FSDP on 2"],
)
def test_the_curve_is_that_of_one_process(world: int, extra: str, tmp_path: Path) -> None:
    model = run(tmp_path / "one", steps=10)
    torchrun(world, tmp_path / "many", f'{{"steps": 10, {extra}}}')
    one, many = logged(tmp_path / "one"), logged(tmp_path / "many")
    assert one.keys() == many.keys() == set(range(1, 11))
    assert many == pytest.approx(one, rel=1e-4)
    assert one[1] - one[10] > 0.01  # it learns, or the curve would be flat
    other = type(model).from_pretrained(tmp_path / "many" / "model")
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)
    state = torch.load(tmp_path / "many" / "checkpoint.pt", weights_only=True)
    assert state["step"] == 10


def test_sharding_refuses_what_it_cannot_split(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, resnet: CLIP
) -> None:
    monkeypatch.setattr(distributed, "group", lambda: object())
    for task in (copy.deepcopy(resnet), ClassificationTask(toy_model(), nn.Linear(32, 2))):
        with pytest.raises(ConfigError, match="shard splits a CLIP of two transformers"):
            Trainer(task, toy_batches, TrainConfig(steps=1, shard=True), tmp_path, device="cpu")


def test_a_sharded_run_goes_on(tmp_path: Path) -> None:
    """Stopped by a signal to all its processes and started again, it is the run that never stopped."""
    values = '{"steps": 6, "shard": true, "save_every": 0, "evaluate_every": 2}'
    torchrun(2, tmp_path / "whole", values)
    torchrun(2, tmp_path / "part", values, "2", code=128 + 15)
    assert logged(tmp_path / "part").keys() == {1, 2, 3}
    torchrun(2, tmp_path / "part", values)
    assert logged(tmp_path / "part") == pytest.approx(logged(tmp_path / "whole"), rel=1e-6)
    figures = [
        json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()
    ]
    assert ["answer" in row for row in figures] == [
        False,
        True,
    ] * 3  # the split model could be asked for features
