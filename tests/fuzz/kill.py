"""Kill what writes at random moments, and see that the old or the new is there, whole.

    PYTHONPATH=. python tests/fuzz/kill.py [--times 20] [--seed 0] [--only JOB]

The jobs: `save_pretrained` and `ImageClassifier.save` over a folder that holds another model or
classifier, `extract_features`, a training run, and an index that is built, updated, and followed by
its graph. The first two must leave the old or the new, to the bit, and the next save must clean up.
The others must keep what they had, go on, and end as if nothing had happened.
Cost: three minutes for 20 moments each.
"""

import argparse
import multiprocessing
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from clipkit import CLIP, ImageClassifier, extract_features
from clipkit.data import pictures
from clipkit.encode.features import Features
from tests.fuzz import killed_indexes
from tests.helpers import training_worker
from tests.helpers.models import RESNET, VIT, make_small_tokenizer, random_clip
from tests.helpers.toy_data import toy_config, two_colors

_STEPS = 6  # of a training run
_IMAGES = 40

# Processes that start as copies of one that has imported all of this: torch takes seconds.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.fuzz.kill"])


@dataclass(frozen=True)
class Job:
    """Hold something that writes.

    Attributes:
        name: for the report.
        prepare: puts into a folder what is there before.
        begin: makes what is to be written, and returns what writes it into a folder.
        check: fails unless the folder holds something whole, and says what.
    """

    name: str
    prepare: Callable[[Path], object]
    begin: Callable[[], Callable[[Path], object]]
    check: Callable[[Path], str]


# A model over another


def _models() -> dict[str, CLIP]:
    return {"old": random_clip(RESNET), "new": random_clip(VIT, make_small_tokenizer())}


def _check_model(folder: Path) -> str:
    found = CLIP.from_pretrained(folder, device="cpu")
    models = _models()
    which = "old" if found.config == models["old"].config else "new"
    assert found.config == models[which].config
    _assert_same(found.state_dict(), models[which].state_dict())
    models[which].save_pretrained(folder)
    _assert_clean(folder)
    return which


# A classifier over another, of the same labels


def _classifier(which: str) -> ImageClassifier:
    torch.manual_seed(0 if which == "old" else 1)
    model = CLIP(toy_config(), make_small_tokenizer()).eval()
    return ImageClassifier.zero_shot(model, ["cat", "dog", "bird"], ["a {}."])


def _check_classifier(folder: Path) -> str:
    found = ImageClassifier.load(folder, device="cpu")
    is_old = torch.equal(found.head.to_linear().weight, _classifier("old").head.to_linear().weight)
    which = "old" if is_old else "new"
    for value, expected in zip(_weights(found), _weights(_classifier(which)), strict=True):
        assert torch.equal(value, expected)
    found.save(folder)
    _assert_clean(folder)
    return which


def _weights(classifier: ImageClassifier) -> list[Tensor]:
    return [
        *classifier.model.state_dict().values(),
        *classifier.head.state_dict().values(),
        *classifier.zero_shot_head.state_dict().values(),
    ]


# Work that goes on


def _extract(folder: Path) -> Features:
    torch.manual_seed(0)
    model = CLIP(toy_config(), make_small_tokenizer()).eval()
    images = [two_colors((200, 0, 90), (90, 0, 0), number) for number in range(_IMAGES)]
    with mock.patch.object(pictures, "CHUNK", 4):  # images that are written at once
        return extract_features(model, images, out=folder / "features.safetensors")


def _check_features(folder: Path) -> str:
    before = len(list(folder.rglob("*.safetensors")))
    found = _extract(folder)
    with tempfile.TemporaryDirectory() as whole:
        assert torch.equal(found.features, _extract(Path(whole)).features)
    assert [path.name for path in folder.iterdir()] == ["features.safetensors"]
    return "gone on" if before else "begun again"


def _train(folder: Path) -> CLIP:
    return training_worker.run(folder, steps=_STEPS, save_every=1)


def _check_training(folder: Path) -> str:
    has_checkpoint = (folder / "checkpoint.pt").exists()
    resumed = _train(folder)
    with tempfile.TemporaryDirectory() as whole:
        _assert_same(resumed.state_dict(), _train(Path(whole)).state_dict())
    assert list(training_worker.losses(folder)) == list(range(1, _STEPS + 1))
    _assert_same(CLIP.from_pretrained(folder / "model").state_dict(), resumed.state_dict())
    _assert_clean(folder)
    return "gone on" if has_checkpoint else "begun again"


def _nothing(folder: Path) -> None:
    del folder


JOBS = (
    Job(
        "save_pretrained",
        lambda folder: _models()["old"].save_pretrained(folder),
        lambda: _models()["new"].save_pretrained,
        _check_model,
    ),
    Job(
        "classifier.save",
        lambda folder: _classifier("old").save(folder),
        lambda: _classifier("new").save,
        _check_classifier,
    ),
    Job("extract_features", _nothing, lambda: _extract, _check_features),
    Job("train", _nothing, lambda: _train, _check_training),
    Job(
        "index.build",
        killed_indexes.paint_photos,
        killed_indexes.begin_build,
        killed_indexes.check_build,
    ),
    Job(
        "index.update",
        killed_indexes.paint_and_change,
        killed_indexes.begin_update,
        killed_indexes.check_update,
    ),
    Job(
        "index.graph",
        killed_indexes.paint_and_make_graph,
        killed_indexes.begin_graph,
        killed_indexes.check_graph,
    ),
)
BY_NAME = {job.name: job for job in JOBS}


def _assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def _assert_clean(folder: Path) -> None:
    """Fail if anything hidden or half-written lies about."""
    left = [path.name for path in folder.rglob("*") if path.name.startswith(".")]
    assert left == []


def kill(job: Job, times: int, seed: int) -> Counter[str]:
    """Kill a job at random moments, each in a folder of its own, and count what was found.

    Raises:
        AssertionError, ClipkitError: if something was not whole.
    """
    draw = random.Random(f"{seed} {job.name}")
    with tempfile.TemporaryDirectory() as scratch:
        seconds = _run(job, Path(scratch) / "whole", None)
        found: Counter[str] = Counter()
        for number in range(times):
            folder = Path(scratch) / str(number)
            _run(job, folder, draw.uniform(0, 1.1 * seconds))
            # Of a process that was killed, what it has written stays; what is written now does too.
            found[job.check(folder)] += 1
    return found


def _run(job: Job, folder: Path, seconds: float | None) -> float:
    """Run a job in another process, kill it after some seconds, and return how long it took.

    Without a number of seconds it is killed when all is written, and that must be so.
    """
    folder.mkdir()
    job.prepare(folder)
    ours, theirs = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=_work, args=(job.name, folder, theirs))
    process.start()
    ours.recv()
    start = time.monotonic()
    wait([ours, process.sentinel], seconds)  # it may fail, and end without a word
    process.kill()
    took = time.monotonic() - start
    process.join()
    assert seconds is not None or ours.recv() == "done"
    return took


def _work(name: str, folder: Path, pipe: Connection) -> None:
    torch.set_num_threads(1)
    write = BY_NAME[name].begin()
    pipe.send("ready")
    write(folder)
    pipe.send("done")  # to end takes torch longer than some jobs


def main() -> None:
    """Kill the jobs that the command line asks for, and print what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(BY_NAME))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for job in JOBS:
        if options.only in (None, job.name):
            found = kill(job, options.times, options.seed)
            shown = ", ".join(f"{what} {count}" for what, count in sorted(found.items()))
            print(f"{job.name}: {options.times} kills: {shown}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
