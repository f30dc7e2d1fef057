"""Break the package, one line at a time, and report which breakages no test notices.

    python tests/mutants/run.py [--only NAME ...] [--workers N] [--skip-sound]

The table is `tests/mutants/table.txt`. Each breakage is made in a copy of the tree, in a temporary
folder, and its test files are run there, up to the first failure. Before that the same files run
once on the unbroken copy, where all must pass. The exit code is 0 if every breakage was noticed.

Cost: about an hour on two cores with two workers for the whole table.
"""

import argparse
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.mutants.table import ROOT, Mutant, mutants, mutate

Fate = Literal["noticed", "survived", "too slow", "did not run"]

COPIED = ("clipkit", "docs", "examples", "scripts", "tests", "README.md", "CHANGELOG.md")
COPIED_TOO = ("CONTRIBUTING.md", "LICENSE", "pyproject.toml")
SECONDS = 900.0  # that the tests of a breakage may take
ALL_PASSED, SOME_FAILED = 0, 1  # pytest's exit codes


@dataclass(frozen=True)
class Outcome:
    """Hold what became of a mutant."""

    mutant: Mutant
    fate: Fate
    seconds: float
    about: str


def main() -> int:
    args = _parse()
    chosen = choose(args.only)
    with tempfile.TemporaryDirectory(prefix="clipkit-mutants-") as folder:
        copies = [copy_tree(Path(folder, str(number))) for number in range(args.workers)]
        if not args.skip_sound and (problem := check_sound(copies[0], chosen)):
            print(f"the tests do not pass on the unbroken tree:\n{problem}")
            return 2
        outcomes = list(report(try_all(chosen, copies)))
    unnoticed = [one for one in outcomes if one.fate != "noticed"]
    print(f"{len(outcomes) - len(unnoticed)} of {len(outcomes)} breakages were noticed")
    for one in unnoticed:
        print(f"{one.fate}: {one.mutant.name} ({one.mutant.file}): {one.about}")
    return 1 if unnoticed else 0


def choose(names: Sequence[str] | None) -> list[Mutant]:
    """Return the mutants of these names; all of them without names."""
    every = mutants()
    if names is None:
        return every
    unknown = set(names) - {mutant.name for mutant in every}
    if unknown:
        raise SystemExit(f"there is no mutant {', '.join(sorted(unknown))} in the table")
    return [mutant for mutant in every if mutant.name in names]


def copy_tree(target: Path) -> Path:
    """Copy what the tests need, without what Python has compiled."""
    target.mkdir()
    for name in (*COPIED, *COPIED_TOO):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target / name)
    return target


def check_sound(copy: Path, chosen: Sequence[Mutant]) -> str:
    """Return what pytest says if the tests fail without any breakage, or an empty text."""
    files = sorted({file for mutant in chosen for file in mutant.tests})
    code, output = run_tests(copy, files, SECONDS * len(files))
    return "" if code == ALL_PASSED else output


def try_all(chosen: Sequence[Mutant], copies: Sequence[Path]) -> Iterator[Outcome]:
    """Yield what became of each mutant, as soon as it is known; a copy is used by one at a time."""
    free: queue.Queue[Path] = queue.Queue()
    for copy in copies:
        free.put(copy)

    def work(mutant: Mutant) -> Outcome:
        copy = free.get()
        try:
            return try_one(mutant, copy)
        finally:
            free.put(copy)

    with ThreadPoolExecutor(len(copies)) as threads:
        for future in as_completed([threads.submit(work, mutant) for mutant in chosen]):
            yield future.result()


def try_one(mutant: Mutant, copy: Path) -> Outcome:
    """Break a copy, run the tests there, and mend it."""
    file = copy / mutant.file
    sound = file.read_text("utf-8")
    begin = time.monotonic()
    try:
        file.write_text(mutate(mutant, sound), "utf-8")
        code, output = run_tests(copy, mutant.tests, SECONDS)
    finally:
        file.write_text(sound, "utf-8")
    fate, about = judge(code, output)
    return Outcome(mutant, fate, time.monotonic() - begin, about)


def judge(code: int | None, output: str) -> tuple[Fate, str]:
    """Return what an exit code of pytest means, and the line that tells most.

    Args:
        code: of pytest; None if it was stopped.
        output: what it wrote.
    """
    if code is None:
        return "too slow", "the tests were stopped"
    if code == ALL_PASSED:
        return "survived", "all tests passed"
    failed = re.search(r"^FAILED \S+::(\S+)", output, re.M)
    if code == SOME_FAILED and failed:
        return "noticed", failed[1]
    last = [line for line in output.splitlines() if line.strip()][-1:]
    return "did not run", f"pytest ended with {code}: {''.join(last)}"


def run_tests(copy: Path, files: Sequence[str], seconds: float) -> tuple[int | None, str]:
    """Run test files in a copy up to the first failure. Return the exit code and the output."""
    # Compiled files are known by their time and size, which a breakage may leave as they are.
    variables = {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_ADDOPTS": ""}
    command = [sys.executable, "-m", "pytest", "-x", "--tb=line", "-rf", "-p", "no:cacheprovider"]
    if (copy / "tests" / "conftest.py").exists():  # whose option it is
        command.append("--slow")
    try:
        found = subprocess.run(
            [*command, *files],
            cwd=copy,
            env={**os.environ, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, ""
    return found.returncode, found.stdout


def report(outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
    """Print each outcome, and pass it on."""
    for one in outcomes:
        print(f"{one.fate:12} {one.seconds:6.1f} s  {one.mutant.name}: {one.about}", flush=True)
        yield one


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of breakages in the table")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="copies of the tree")
    parser.add_argument(
        "--skip-sound", action="store_true", help="do not run the tests on the unbroken tree first"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
