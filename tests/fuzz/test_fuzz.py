"""Test that a thousand damaged files are read, or refused by typed errors, in little time."""

from pathlib import Path

import pytest

from tests.fuzz.run import run, write_files
from tests.fuzz.subjects import ONE_OF_MANY, SUBJECTS, Subject, sound_files


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_sound_files_are_read(subject: Subject, tmp_path: Path) -> None:
    files = sound_files(subject.name, tmp_path / "scratch")
    parts = [files]
    if subject.name in ONE_OF_MANY:
        parts = [{name: content} for name, content in files.items()]
    for number, part in enumerate(parts):
        write_files(part, tmp_path / str(number))
        subject.read(tmp_path / str(number))


@pytest.mark.slow
# Kinds X1, X4, X5, X10: files that are damaged or made to harm.
def test_damaged_files_are_typed_errors() -> None:
    outcomes = list(run(1000, seed=1, subjects=list(SUBJECTS)))
    assert len(outcomes) == 1000
    assert [outcome for outcome in outcomes if outcome.problem] == []
    # The files are damaged in ways that matter, and not beyond all reading.
    refused = sum(bool(outcome.error) for outcome in outcomes)
    assert 200 < refused < 900
