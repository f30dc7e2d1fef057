"""The training loop: it learns, it survives being stopped anywhere, and each option does what it says."""

import copy
import dataclasses
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import clipkit
from clipkit import CLIP, Tokenizer
from clipkit.errors import ConfigError, TrainingError
from clipkit.tokenizer import default_merges
from clipkit.training.batches import Batch
from clipkit.training.loop import Trainer
from clipkit.training.losses import clip_loss, sigmoid_loss
from clipkit.training.config import TrainConfig, cosine
from clipkit.training.optimizer import adamw
from clipkit.training.tasks import ContrastiveTask, Task
from tests.helpers import training_worker
from tests.helpers.training_worker import CONFIG, losses, run, toy_batches, toy_model


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def equal(first: CLIP, second: CLIP) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))


def test_equals_a_loop_written_out(tmp_path: Path) -> None:
    """Every step, the schedule and the clipping, against plain torch."""
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
    assert equal(trained, model)


def test_what_it_leaves(tmp_path: Path) -> None:
    model = run(tmp_path, steps=30)
    found = losses(tmp_path)
    assert found.keys() == set(range(1, 31)) and found[30] < found[1] - 0.1
    assert not model.training and all(p.requires_grad for p in model.parameters())
    assert {path.name for path in tmp_path.iterdir()} >= {"checkpoint.pt", "log.jsonl", "model"}
    assert equal(CLIP.from_pretrained(tmp_path / "model"), model)
    row = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert row.keys() == {"step", "loss", "scale", "lr", "images_per_second", "skipped"}
    assert (
        row["scale"] == pytest.approx(model.logit_scale.exp().item())
        and row["images_per_second"] > 0
    )
    assert model.config == CONFIG


def test_tensorboard_has_the_same_figures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, steps=4)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    logged = {event.step: event.value for event in events.Scalars("loss")}
    assert logged == pytest.approx(losses(tmp_path))


STEPS = 40


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CLIP]:
    out = tmp_path_factory.mktemp("uninterrupted")
    return out, run(out, steps=STEPS, ema=0.9)


def test_killed_at_any_moment_it_goes_on_to_the_bit(
    uninterrupted: tuple[Path, CLIP], tmp_path: Path
) -> None:
    """SIGKILL three times, wherever it hits: in a step, while saving, while the log is written."""
    whole, model = uninterrupted
    command = [sys.executable, "-W", "ignore", str(Path(training_worker.__file__)), str(tmp_path)]
    values = {"steps": STEPS, "ema": 0.9, "save_every": 3}
    environment = os.environ | {"PYTHONPATH": str(Path(clipkit.__file__).parents[1])}
    environment["THREADS"] = str(torch.get_num_threads())
    chance, log = random.Random(os.getpid()), tmp_path / "log.jsonl"
    for target in (3, 10, 20):
        process = subprocess.Popen([*command, json.dumps(values)], env=environment)
        while process.poll() is None and (
            not log.exists() or len(log.read_text().splitlines()) < target
        ):
            time.sleep(0.005)
        time.sleep(chance.random() * 0.1)
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
    left = losses(tmp_path)
    assert left and max(left) < STEPS
    resumed = run(tmp_path, **values)
    assert losses(tmp_path) == losses(whole)
    assert equal(resumed, model)
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("log_every", [1, 7])
def test_sigterm_saves_and_exits(log_every: int, tmp_path: Path) -> None:
    """In the middle of a logged interval too; the mean of that interval is not lost."""
    run(tmp_path / "whole", steps=20, log_every=log_every)
    with pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)):
        run(
            tmp_path / "part",
            lambda step: toy_batches(step, 9),
            steps=20,
            log_every=log_every,
            save_every=0,
        )
    assert torch.load(tmp_path / "part" / "checkpoint.pt", weights_only=True)["step"] == 10
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    run(tmp_path / "part", steps=20, log_every=log_every)
    assert losses(tmp_path / "part") == losses(tmp_path / "whole")


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    first = run(tmp_path, steps=3)
    log = (tmp_path / "log.jsonl").read_text()
    assert equal(run(tmp_path, steps=3), first)
    assert (tmp_path / "log.jsonl").read_text() == log


def test_a_run_goes_on_for_more_steps(tmp_path: Path) -> None:
    """The warm-up follows the steps where none is given, and is no reason to refuse."""
    for steps in (20, 40):
        config = TrainConfig(steps=steps, log_every=1, save_every=10)
        trainer = Trainer(toy_model(), toy_batches, config, tmp_path, device="cpu")
        assert trainer.step == steps - 20
        trainer.fit()
    assert len(losses(tmp_path)) == 40


def test_another_run_is_not_continued(tmp_path: Path) -> None:
    run(tmp_path, steps=2)
    with pytest.raises(
        TrainingError, match=r"of another run \(lr 0.003 there, 0.1 here\): give another out"
    ):
        run(tmp_path, steps=2, lr=0.1)
    model = CLIP(dataclasses.replace(CONFIG, embed_dim=16), toy_model().tokenizer)
    config = TrainConfig(steps=2, lr=3e-3, warm_up=2, log_every=1, save_every=2)
    for other, identity in ((model, ""), (toy_model(), "the same of other data")):
        with pytest.raises(TrainingError, match=r"of another run \(another model, start or data\)"):
            Trainer(other, toy_batches, config, tmp_path, device="cpu", identity=identity)


@pytest.mark.parametrize("damage", [b"", b"no checkpoint", None])
def test_a_damaged_checkpoint_is_named(damage: bytes | None, tmp_path: Path) -> None:
    run(tmp_path, steps=2)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:20000] if damage is None else damage)
    with pytest.raises(TrainingError, match=r"checkpoint.pt cannot be resumed \(.*remove it"):
        run(tmp_path, steps=2)


def test_a_log_without_a_checkpoint_starts_again(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 9}\n{"step": 2, "lo')
    whole = run(tmp_path / "whole", steps=2)
    assert equal(run(tmp_path, steps=2), whole) and losses(tmp_path) == losses(tmp_path / "whole")


def test_sigterm_to_the_group_reaches_no_worker(tmp_path: Path) -> None:
    """torchrun signals the whole group of a process; workers that read ahead must outlive it, or nothing is saved."""
    for name in ("dark", "light"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(8):
            colour = number + 100 * (name == "light")
            Image.new("RGB", (40, 40), (colour,) * 3).save(
                tmp_path / "pictures" / name / f"{number}.png"
            )
    CLIP(CONFIG, Tokenizer(default_merges()[:86], context_length=16)).save_pretrained(
        tmp_path / "start"
    )
    values = {"data": "pictures", "out": "run", "init": "start", "batch_size": 4, "workers": 2}
    train = {"steps": 100000, "log_every": 1, "save_every": 0}
    (tmp_path / "run.json").write_text(json.dumps({**values, "train": train}))
    environment = os.environ | {"PYTHONPATH": str(Path(clipkit.__file__).parents[1])}
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "clipkit",
        "train",
        str(tmp_path / "run.json"),
        "--device",
        "cpu",
    ]
    process = subprocess.Popen(
        command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    log = tmp_path / "run" / "log.jsonl"
    while process.poll() is None and (not log.exists() or len(log.read_text().splitlines()) < 3):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 128 + signal.SIGTERM, error
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert state["step"] == len(log.read_text().splitlines()) >= 3


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

    if where == "gradient":
        plain = ContrastiveTask.forward

        def forward(
            self: ContrastiveTask, images: torch.Tensor, tokens: torch.Tensor
        ) -> torch.Tensor:
            loss = plain(self, images, tokens)
            if images.requires_grad:
                loss.register_hook(lambda gradient: gradient * math.inf)
            return loss

        monkeypatch.setattr(ContrastiveTask, "forward", forward)
    with pytest.raises(
        TrainingError, match=r"step 5: the loss is .*had step 5, picture 0, step 5, picture 1"
    ):
        run(tmp_path, batches, steps=20, save_every=2)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["step"] == 4 and all(value.isfinite().all() for value in state["task"].values())


def test_skipped_pictures_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batches = lambda step: (
        b._replace(skipped=["bad.jpg is no picture"] * 2) for b in toy_batches(step)
    )  # noqa: E731
    run(tmp_path, batches, steps=3)
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["skipped"] == 6
    output = capsys.readouterr()
    assert (output.out + output.err).count(
        "skipped: bad.jpg is no picture"
    ) == 1  # once each is enough


def test_micro_batches_change_nothing(tmp_path: Path) -> None:
    run(tmp_path / "whole", steps=5)
    run(tmp_path / "parts", steps=5, micro_batch=3, recompute=True)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


def test_locked_towers(tmp_path: Path) -> None:
    start, model = toy_model(), run(tmp_path, steps=3, image_blocks=0, text_blocks=1)
    before, after = start.state_dict(), model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith("visual.") for name in changed)
    assert {name.split(".")[1] for name in changed - {"logit_scale"}} == {
        "transformer",
        "ln_final",
        "text_projection",
    }
    assert all(".resblocks.1." in name for name in changed if "resblocks" in name)


def test_average(tmp_path: Path) -> None:
    """With the decay d: a_0 = w_0, a_t = d a_(t-1) + (1 - d) w_t; it is what is evaluated, saved and given back."""
    seen = []

    def evaluate(model: CLIP) -> dict[str, float]:
        assert not model.training
        seen.append(weights(model))
        return {"answer": 42.0}

    trajectory: list[list[torch.Tensor]] = []
    for steps in (1, 2):
        task = ContrastiveTask(toy_model())
        config = TrainConfig(steps=4, lr=3e-3, warm_up=2, log_every=1, ema=0.75, evaluate_every=1)
        trainer = Trainer(
            task, toy_batches, config, tmp_path / str(steps), evaluate=evaluate, device="cpu"
        )
        if steps == 1:
            batches = toy_batches(0)
            for _ in range(4):
                trainer._train_step(next(batches), False)
                trainer.step += 1
                trajectory.append(weights(trainer.model))
            continue
        final = trainer.fit()
    average = trajectory[0]  # AveragedModel starts at the first weights that it sees
    for step in range(1, 4):
        average = [0.75 * a + 0.25 * w for a, w in zip(average, trajectory[step], strict=True)]
        for a, b in zip(average, seen[step], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    for a, b in zip(average, weights(final), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert json.loads((tmp_path / "2" / "log.jsonl").read_text().splitlines()[-1])["answer"] == 42.0


def test_a_failing_evaluation_loses_nothing(tmp_path: Path) -> None:
    def evaluate(model: CLIP) -> dict[str, float]:
        raise OSError("the evaluation's folder is gone")

    config = TrainConfig(steps=3, warm_up=1, save_every=0)
    with pytest.raises(OSError, match="folder is gone"):
        Trainer(toy_model(), toy_batches, config, tmp_path, evaluate=evaluate, device="cpu").fit()
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 3
    Trainer(toy_model(), toy_batches, config, tmp_path, device="cpu").fit()
    assert (tmp_path / "model").is_dir()


def test_bfloat16_keeps_float32_weights(tmp_path: Path) -> None:
    model = run(tmp_path / "half", steps=12, precision="bfloat16")
    run(tmp_path / "full", steps=12)
    assert model.dtype == torch.float32
    half, full = losses(tmp_path / "half"), losses(tmp_path / "full")
    assert half != full and half == pytest.approx(full, abs=0.1)


def test_the_temperature_stops_at_100(tmp_path: Path) -> None:
    """Where every step raises it."""
    model = toy_model()
    with torch.no_grad():
        model.logit_scale.fill_(math.log(99))

    class Rising(ContrastiveTask):
        def forward(self, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
            return super().forward(images, tokens) - 1000 * self.model.logit_scale

    def train(task: Task, out: Path) -> float:
        config = TrainConfig(steps=5, lr=0.1, warm_up=0, clip_grad=None)
        return Trainer(task, toy_batches, config, out, device="cpu").fit().logit_scale.exp().item()

    assert train(Rising(copy.deepcopy(model)), tmp_path / "clip") == pytest.approx(100, abs=0.01)
    free = Rising(
        model, lambda *inputs: clip_loss(*inputs)
    )  # any other loss sees to its scale by itself
    assert train(free, tmp_path / "free") > 110


def test_another_loss_and_other_optimisers(tmp_path: Path) -> None:
    task = ContrastiveTask(toy_model(), loss=sigmoid_loss)
    config = TrainConfig(steps=4, warm_up=0, log_every=1)
    make = lambda module: [torch.optim.SGD(module.parameters(), lr=0.5, momentum=0.9)]  # noqa: E731
    trainer = Trainer(task, toy_batches, config, tmp_path, optimizers=make, device="cpu")
    trainer.fit()
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.5 * cosine(3, 4, 0))
    assert (
        losses(tmp_path)[1] > 3
    )  # at the bias of -10 nearly all of the loss is the matching pairs'
    assert losses(tmp_path)[4] < losses(tmp_path)[1]


def test_compiled(tmp_path: Path) -> None:
    run(tmp_path / "compiled", steps=3, compile=True, micro_batch=4)
    run(tmp_path / "plain", steps=3)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)


def test_half_precision_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"float32 weights, the model has torch.bfloat16: call model.float\(\)"
    ):
        Trainer(
            copy.deepcopy(toy_model()).bfloat16(),
            toy_batches,
            TrainConfig(steps=1),
            tmp_path,
            device="cpu",
        )


def test_channels_last_for_resnets_alone(resnet: CLIP, tmp_path: Path) -> None:
    trainer = Trainer(
        copy.deepcopy(resnet), toy_batches, TrainConfig(steps=1), tmp_path, device="cpu"
    )
    weight = trainer.model.visual.layer1[0].conv2.weight  # pyright: ignore[reportIndexIssue, reportAttributeAccessIssue]
    assert weight.is_contiguous(memory_format=torch.channels_last)
