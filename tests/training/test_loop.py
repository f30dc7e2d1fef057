"""The training loop: it learns, and each option does what it says."""

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from clipkit import CLIP
from clipkit.errors import ConfigError, TrainingError
from clipkit.training.batches import Batch
from clipkit.training.config import TrainConfig, cosine
from clipkit.training.loop import Trainer
from clipkit.training.losses import clip_loss, sigmoid_loss
from clipkit.training.optimizer import adamw
from clipkit.training.signals import StopRequest
from clipkit.training.tasks import ContrastiveTask, Task
from tests.helpers.models import assert_same
from tests.helpers.training_worker import (
    CONFIG,
    losses,
    rows_of_log,
    run,
    state_of,
    toy_batches,
    toy_model,
)


def weights(model: nn.Module) -> list[Tensor]:
    """Return a copy of all parameters."""
    return [p.detach().clone() for p in model.parameters()]


def test_equals_a_loop_written_out(tmp_path: Path) -> None:
    """Every step, the schedule and the clipping are those of plain torch."""
    trained = run(tmp_path, steps=6, warm_up=3, weight_decay=0.1, layer_decay=0.7, clip_grad=0.5)
    model = toy_model().train()
    optimizer = adamw(model, 3e-3, 0.1, 0.7, (0.9, 0.98))
    rates = [group["lr"] for group in optimizer.param_groups]
    for step, batch in zip(range(6), toy_batches(0), strict=False):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * cosine(step, 6, 3)
        images, tokens = batch.inputs
        loss = clip_loss(model.encode_image(images), model.encode_text(tokens), model.logit_scale)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        assert losses(tmp_path)[step + 1] == loss.item()
    assert_same(trained, model)


def test_what_it_leaves(tmp_path: Path) -> None:
    model = run(tmp_path, steps=30)
    found = losses(tmp_path)
    assert found.keys() == set(range(1, 31))
    assert found[30] < found[1] - 0.1
    assert not model.training
    assert all(p.requires_grad for p in model.parameters())
    assert model.config == CONFIG
    assert {path.name for path in tmp_path.iterdir()} >= {"checkpoint.pt", "log.jsonl", "model"}
    assert_same(CLIP.from_pretrained(tmp_path / "model", device="cpu"), model)
    row = rows_of_log(tmp_path)[-1]
    assert row.keys() == {"step", "loss", "scale", "lr", "images_per_second", "skipped"}
    assert row["scale"] == pytest.approx(model.logit_scale.exp().item())
    assert row["images_per_second"] > 0


def test_the_loss_in_the_log_is_the_mean_since_the_last_row(tmp_path: Path) -> None:
    run(tmp_path / "each", steps=7, log_every=1)
    run(tmp_path / "some", steps=7, log_every=3)
    each = losses(tmp_path / "each")
    means = {step: sum(each[one] for one in range(step - 2, step + 1)) / 3 for step in (3, 6)}
    assert losses(tmp_path / "some") == pytest.approx({**means, 7: each[7]}, rel=1e-6)


def test_each_step_draws_other_numbers_and_the_same_in_every_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ContrastiveTask.forward
    drawn: list[float] = []

    def forward(self: ContrastiveTask, images: Tensor, tokens: Tensor) -> Tensor:
        drawn.append(torch.rand(()).item())
        return plain(self, images, tokens)

    monkeypatch.setattr(ContrastiveTask, "forward", forward)
    for folder in ("one", "other"):
        run(tmp_path / folder, steps=4)
    assert len(set(drawn[:4])) == 4
    assert drawn[:4] == drawn[4:]


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_stops_it(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def batches(step: int) -> Iterator[Batch]:
        for number, batch in enumerate(toy_batches(step), start=step):
            if number == 5:
                images = batch.inputs[0]
                images[1] = math.nan if where == "loss" else images[1]
                images.requires_grad_(where == "gradient")
            yield batch

    plain = ContrastiveTask.forward

    def forward(self: ContrastiveTask, images: Tensor, tokens: Tensor) -> Tensor:
        loss = plain(self, images, tokens)
        if images.requires_grad:
            loss.register_hook(lambda gradient: gradient * math.inf)
        return loss

    monkeypatch.setattr(ContrastiveTask, "forward", forward)
    message = r"step 5: the loss is .*had step 5, image 0, step 5, image 1"
    with pytest.raises(TrainingError, match=message):
        run(tmp_path, batches, steps=20, save_every=2)
    state = state_of(tmp_path)
    assert state["step"] == 4
    assert all(value.isfinite().all() for value in state["task"].values())


def test_skipped_images_are_counted_and_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def batches(step: int) -> Iterator[Batch]:
        for batch in toy_batches(step):
            yield batch._replace(skipped=["bad.jpg is no image"] * 2)

    run(tmp_path, batches, steps=3)
    assert rows_of_log(tmp_path)[-1]["skipped"] == 6
    output = capsys.readouterr()
    assert (output.out + output.err).count("skipped: bad.jpg is no image") == 1


def test_micro_batches_change_nothing(tmp_path: Path) -> None:
    run(tmp_path / "whole", steps=5)
    run(tmp_path / "parts", steps=5, micro_batch=3, recompute=True)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


def test_locked_towers(tmp_path: Path) -> None:
    model = run(tmp_path, steps=3, image_blocks=0, text_blocks=1)
    before = toy_model().state_dict()
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith("visual.") for name in changed)
    parts = {name.split(".")[1] for name in changed - {"logit_scale"}}
    assert parts == {"transformer", "ln_final", "text_projection"}
    assert all(".resblocks.1." in name for name in changed if "resblocks" in name)


def test_average(tmp_path: Path) -> None:
    """With the decay d: a_0 = w_0, a_t = d a_(t-1) + (1 - d) w_t. It is evaluated and saved."""
    seen: list[list[Tensor]] = []

    def evaluate(model: CLIP) -> dict[str, float]:
        assert not model.training
        seen.append(weights(model))
        return {"answer": 42.0}

    config = TrainConfig(steps=4, lr=3e-3, warm_up=2, log_every=1, ema=0.75, evaluate_every=1)
    trainer = Trainer(toy_model(), toy_batches, config, tmp_path / "steps", device="cpu")
    trajectory: list[list[Tensor]] = []
    for _, batch in zip(range(4), toy_batches(0), strict=False):
        trainer._count(trainer._train_step(batch, StopRequest()))
        trajectory.append(weights(trainer.model))
    final = Trainer(
        toy_model(), toy_batches, config, tmp_path / "fit", evaluate=evaluate, device="cpu"
    ).fit()
    average = trajectory[0]  # AveragedModel starts at the first weights that it sees
    for step in range(1, 4):
        average = [0.75 * a + 0.25 * w for a, w in zip(average, trajectory[step], strict=True)]
        for a, b in zip(average, seen[step], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    for a, b in zip(average, weights(final), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert rows_of_log(tmp_path / "fit")[-1]["answer"] == 42.0


def test_bfloat16_keeps_float32_weights(tmp_path: Path) -> None:
    model = run(tmp_path / "half", steps=12, precision="bfloat16")
    run(tmp_path / "full", steps=12)
    assert model.dtype == torch.float32
    half = losses(tmp_path / "half")
    full = losses(tmp_path / "full")
    assert half != full
    assert half == pytest.approx(full, abs=0.1)


def test_the_temperature_stops_at_100(tmp_path: Path) -> None:
    """Every step raises it. Another loss sees to its scale by itself."""
    model = toy_model()
    with torch.no_grad():
        model.logit_scale.fill_(math.log(99))

    class Rising(ContrastiveTask):
        def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
            return super().forward(images, tokens) - 1000 * self.model.logit_scale

    def train(task: Task, out: Path) -> float:
        config = TrainConfig(steps=5, lr=0.1, warm_up=0, clip_grad=None)
        return Trainer(task, toy_batches, config, out, device="cpu").fit().logit_scale.exp().item()

    clipped = train(Rising(copy.deepcopy(model)), tmp_path / "clip")
    assert clipped == pytest.approx(100, abs=0.01)
    assert train(Rising(model, lambda *inputs: clip_loss(*inputs)), tmp_path / "free") > 110


def test_another_loss_and_other_optimizers(tmp_path: Path) -> None:
    def make(module: nn.Module) -> list[Optimizer]:
        return [torch.optim.SGD(module.parameters(), lr=0.5, momentum=0.9)]

    task = ContrastiveTask(toy_model(), loss=sigmoid_loss)
    config = TrainConfig(steps=4, warm_up=0, log_every=1)
    trainer = Trainer(task, toy_batches, config, tmp_path, optimizers=make, device="cpu")
    trainer.fit()
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.5 * cosine(3, 4, 0))
    # At the bias of -10 nearly all of the loss is the matching pairs'.
    assert losses(tmp_path)[1] > 3
    assert losses(tmp_path)[4] < losses(tmp_path)[1]


def test_compiled(tmp_path: Path) -> None:
    run(tmp_path / "compiled", steps=3, compile=True, micro_batch=4)
    run(tmp_path / "plain", steps=3)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)


def test_half_precision_weights_are_refused(tmp_path: Path) -> None:
    model = toy_model().bfloat16()
    message = r"float32 weights, the model has torch.bfloat16: call model.float\(\)"
    with pytest.raises(ConfigError, match=message):
        Trainer(model, toy_batches, TrainConfig(steps=1), tmp_path, device="cpu")


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(steps=1, compile=True, recompute=True),
        TrainConfig(steps=1, compile=True, micro_batch=2),
    ],
)
def test_what_does_not_go_together_is_refused(
    config: TrainConfig, resnet: CLIP, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="compile does not go with recompute or micro_batch"):
        Trainer(copy.deepcopy(resnet), toy_batches, config, tmp_path, device="cpu")


def test_channels_last_for_resnets_alone(resnet: CLIP, tmp_path: Path) -> None:
    config = TrainConfig(steps=1)
    trainer = Trainer(copy.deepcopy(resnet), toy_batches, config, tmp_path, device="cpu")
    kernel = trainer.model.visual.get_parameter("layer1.0.conv2.weight")
    assert kernel.is_contiguous(memory_format=torch.channels_last)


def test_blocks_are_recomputed_during_training_alone(tmp_path: Path) -> None:
    model = run(tmp_path, steps=1, recompute=True)
    assert not any("forward" in vars(module) for module in model.modules())
    assert json.loads((tmp_path / "log.jsonl").read_text())["step"] == 1
