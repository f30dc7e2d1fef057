"""Training tells of itself where there is no terminal, and not too much (Y6)."""

import io
import json
import logging
import re
import sys
from pathlib import Path

import pytest

from clipkit.cli import main
from clipkit.commands.logs import told_logs
from clipkit.training.log import Reporter


def test_train_tells_its_figures_and_where_the_model_is(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"data": "captioned", "out": "run", "batch_size": 8, "init": "start"}
    settings = {"steps": 4, "lr": 1e-3, "log_every": 2}
    (toy / "train.json").write_text(json.dumps(values | {"train": settings}))
    assert main(["train", str(toy / "train.json"), "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert lines[0].startswith(f"Training for 4 steps in {toy / 'run'}.")
    steps = [line for line in lines if line.startswith("step ")]
    assert [line.split(":")[0] for line in steps] == ["step 2 of 4", "step 4 of 4"]
    assert re.search(r"loss \d\.\d+, scale ", steps[0])
    assert f"of it {toy / 'run' / 'checkpoint.pt'}, which only going on" in lines[-1]
    assert f"clipkit.load({str(toy / 'run' / 'model')!r})" in out
    assert main(["train", str(toy / "train.json"), "--device", "cpu"]) == 0
    assert "Going on with the run of 4 steps" in capsys.readouterr().err


def test_finetune_tells_what_it_starts_from_and_what_it_holds_out(
    toy: Path, start: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (toy / "images" / "empty").mkdir()
    options = [*start, "--held-out", "0.2", "--epochs", "1", "--batch-size", "8"]
    assert main(["finetune", str(toy / "images"), "-o", str(toy / "out"), *options]) == 0
    err = capsys.readouterr().err
    assert "no images, so no class: empty" in err
    assert f"Starting from {toy / 'start'}, CLIP(VisionTransformer of 32 x 32 pixels" in err
    assert "Training on 16 images; 4 are held out to measure on." in err
    assert f"of it {toy / 'out' / 'run'}, which only going on" in err


@pytest.mark.parametrize(("steps", "lines"), [(5, 5), (1000, 101)])
def test_a_long_run_tells_a_hundred_rows(
    steps: int, lines: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "clipkit")
    with Reporter(tmp_path, 0, steps) as reporter:
        for step in range(1, steps + 1):
            reporter.write(step, {"loss": 1.0})
    told = [record.getMessage() for record in caplog.records]
    assert len(told) <= lines
    assert len(told) >= 5
    assert told[-1] == f"step {steps} of {steps}: loss 1"


def test_warnings_of_the_library_are_told_as_the_commands_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logger = logging.getLogger("clipkit.classify")
    with told_logs():
        logger.warning("no image of 2 classes: %s", "\x1b[2J")
    assert capsys.readouterr().err == "clipkit: no image of 2 classes: \\x1b[2J\n"
    assert logging.getLogger("clipkit").handlers == []


def test_escape_codes_in_names_of_broken_images_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Reporter(tmp_path, 0, 1) as reporter:
        reporter.count(1, ["a\x1b[2J.jpg is broken"])
    assert "skipped: a\\x1b[2J.jpg is broken\n" in capsys.readouterr().err


def test_a_terminal_has_a_bar_in_place_of_rows_of_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.BytesIO()
    terminal = io.TextIOWrapper(content, encoding="utf-8")
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("NO_COLOR", "1")
    with told_logs():
        logging.getLogger("clipkit.training.log").info("step 1 of 2")
        logging.getLogger("clipkit.training.run").info("Training on 2 images")
    assert content.getvalue().decode() == "Training on 2 images\n"


def test_a_fitted_head_tells_what_it_was_not_fitted_on(
    toy: Path, start: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (toy / "images" / "blue" / "01.png").write_bytes(b"broken")
    out = str(toy / "out")
    options = [*start, "--held-out", "0.1", "--head-only"]
    assert main(["finetune", str(toy / "images"), "-o", out, *options]) == 0
    assert re.search("^clipkit: skipped: .*blue/01.png", capsys.readouterr().err, re.M)
    assert main(["eval", str(toy / "images"), "--classifier", out, "--device", "cpu"]) == 0
    assert "was fitted on 17 of these 19 images" in capsys.readouterr().out
