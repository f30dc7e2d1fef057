"""Read thousands of damaged files, and count what is no clear, typed, bounded failure.

    PYTHONPATH=. python tests/fuzz/run.py [--cases 10000] [--seed 0] [--only SUBJECT] [--workers 2]

Each case damages one sound file (see `subjects.py`, `mutate.py`) and reads it in another process.
It fails if that raises anything but a `ClipkitError`, takes more than 10 s or 1 GB of memory, gives
a wrong result, kills the process, or leaves a file behind. The seed and the number of a case make
it again: `--only "feature file" --case 123`. Cost: about 4 minutes on two cores for 10,000 cases.
"""

import argparse
import logging
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clipkit.errors import ClipkitError
from tests.fuzz.mutate import mutate_file
from tests.fuzz.subjects import BY_NAME, ONE_OF_MANY, SUBJECTS, Subject, sound_files

MOST_SECONDS = 10.0
MOST_MEMORY = 1 << 30  # bytes
_START_SECONDS = 300.0  # for a worker to import torch and to make the sound files


@dataclass(frozen=True)
class Outcome:
    """Hold what became of a case. `problem` is empty for all that may be."""

    subject: str
    case: int
    error: str
    problem: str


def run(cases: int, seed: int, subjects: list[Subject], workers: int = 2) -> Iterator[Outcome]:
    """Yield the outcome of each case, in any order."""
    numbers = range(cases)
    with ThreadPoolExecutor(workers) as pool:
        shares = [numbers[start::workers] for start in range(workers)]
        futures = [pool.submit(_run_share, share, seed, subjects) for share in shares]
        for future in futures:
            yield from future.result()


def _run_share(cases: range, seed: int, subjects: list[Subject]) -> list[Outcome]:
    """Run cases one after another in a process, and start another one where it dies or hangs."""
    outcomes: list[Outcome] = []
    worker = _Worker(seed)
    try:
        for case in cases:
            subject = subjects[case % len(subjects)]
            outcome = worker.ask(subject.name, case)
            if outcome is None:
                outcome = Outcome(subject.name, case, "", worker.stop())
                worker = _Worker(seed)
            outcomes.append(outcome)
    finally:
        worker.stop()
    return outcomes


class _Worker:
    """Hold a process that runs one case at a time."""

    def __init__(self, seed: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.scratch = Path(tempfile.mkdtemp(prefix="fuzz-"))
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, seed, self.scratch))
        self.process.start()
        theirs.close()
        if not self.pipe.poll(_START_SECONDS):
            raise RuntimeError("a worker did not start")
        self.pipe.recv()

    def ask(self, name: str, case: int) -> Outcome | None:
        """Return the outcome of a case, or None if the process hangs or has died."""
        try:
            self.pipe.send((name, case))
            # A process that is given no core is not one that hangs, so there is some time more.
            return self.pipe.recv() if self.pipe.poll(4 * MOST_SECONDS) else None
        except (EOFError, OSError):
            return None

    def stop(self) -> str:
        """End the process, and say whether it had died or was hanging."""
        code = self.process.exitcode
        self.process.kill()
        self.process.join()
        self.pipe.close()
        shutil.rmtree(self.scratch, ignore_errors=True)
        return f"the process died with {code}" if code is not None else "no end"


def _serve(pipe: Any, seed: int, scratch: Path) -> None:
    """Run the cases that come through the pipe."""
    torch.set_num_threads(1)
    logging.disable()
    warnings.simplefilter("ignore")
    for subject in SUBJECTS:
        sound_files(subject.name, scratch)
    pipe.send("ready")
    while True:
        try:
            name, case = pipe.recv()
        except EOFError:
            return
        pipe.send(run_case(BY_NAME[name], case, seed, scratch))


def run_case(subject: Subject, case: int, seed: int, scratch: Path) -> Outcome:
    """Damage a file of a subject as a seed and a number say, and read it."""
    folder = scratch / "case"
    shutil.rmtree(folder, ignore_errors=True)
    draw = random.Random(f"{seed} {subject.name} {case}")
    _write_damaged(subject, folder, draw, scratch)
    before = _names(folder)
    _reset_peak()
    memory = _memory("VmRSS")
    start = time.process_time()
    problem, error = _read(subject, folder)
    seconds = time.process_time() - start
    if not problem and seconds > MOST_SECONDS:
        problem = f"took {seconds:.0f} s"
    growth = _memory("VmHWM") - memory
    if not problem and growth > MOST_MEMORY:
        problem = f"took {growth / 2**20:.0f} MiB"
    if not problem:
        problem = _left_over(subject, before, _names(folder))
    return Outcome(subject.name, case, error, problem)


def _write_damaged(subject: Subject, folder: Path, draw: random.Random, scratch: Path) -> None:
    """Write the files of a subject with one of them damaged."""
    files = sound_files(subject.name, scratch)
    chosen = draw.choice(list(files))
    if subject.name in ONE_OF_MANY:
        files = {chosen: files[chosen]}
    write_files(files, folder)
    mutate_file(folder / chosen, draw)


def write_files(files: dict[str, bytes], folder: Path) -> None:
    """Write files by their names into a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _read(subject: Subject, folder: Path) -> tuple[str, str]:
    """Return what is wrong with how a subject is read, and the name of the error that it raises."""
    try:
        subject.read(folder)
    except ClipkitError as error:
        return "", type(error).__name__
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        message = str(error).partition("\n")[0][:150]
        place = f"{Path(where.filename).name}:{where.lineno}"
        return f"{type(error).__name__} at {place}: {message}", ""
    return "", ""


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _left_over(subject: Subject, before: set[str], after: set[str]) -> str:
    """Say which files are there that were not, without those that a run is meant to write."""
    new = sorted(after - before)
    if subject.writes:
        new = [name for name in new if name.endswith(".tmp") or Path(name).name.startswith(".")]
    return f"left behind {', '.join(new)}" if new else ""


def _reset_peak() -> None:
    """Let Linux count the peak of this process's memory anew."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # another system: memory is not measured


def _memory(name: str) -> int:
    """Return a figure of /proc/self/status in bytes, or 0 on other systems."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def main() -> int:
    """Run the cases that the command line asks for, and print what failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="SUBJECT", help="one of the subjects")
    parser.add_argument("--case", type=int, help="with --only: this one, and keep its files")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    subjects = [s for s in SUBJECTS if options.only in (None, s.name)]
    if not subjects:
        parser.error(f"--only takes one of: {', '.join(s.name for s in SUBJECTS)}")
    if options.case is not None:
        scratch = Path(tempfile.mkdtemp(prefix="fuzz-"))
        print(run_case(subjects[0], options.case, options.seed, scratch), scratch / "case")
        subjects[0].read(scratch / "case")
        return 0
    start = time.monotonic()
    outcomes = list(run(options.cases, options.seed, subjects, options.workers))
    report(outcomes)
    print(f"{time.monotonic() - start:.0f} s")
    return 1 if any(outcome.problem for outcome in outcomes) else 0


def report(outcomes: list[Outcome]) -> None:
    """Print the failures, and how many cases of each subject were read, refused and failed."""
    for outcome in outcomes:
        if outcome.problem:
            print(f"{outcome.subject}, case {outcome.case}: {outcome.problem}")
    print(f"{'subject':<26}{'cases':>8}{'read':>8}{'refused':>9}{'failed':>8}")
    for name in dict.fromkeys(outcome.subject for outcome in outcomes):
        own = [outcome for outcome in outcomes if outcome.subject == name]
        refused = sum(bool(outcome.error) for outcome in own)
        failed = sum(bool(outcome.problem) for outcome in own)
        read = len(own) - refused - failed
        print(f"{name:<26}{len(own):>8}{read:>8}{refused:>9}{failed:>8}")
    errors = Counter(outcome.error for outcome in outcomes if outcome.error)
    print(", ".join(f"{name} {count}" for name, count in errors.most_common()))


if __name__ == "__main__":
    sys.exit(main())
