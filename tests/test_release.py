"""What is shipped is whole, small enough and licensed: all that needs no build."""

import re
import sys
import zipfile
from pathlib import Path

import pytest

import clipkit
from scripts import release_check
from scripts.release_check import CheckError, check_wheel, find_python

ROOT = Path(__file__).parents[1]
SETTINGS = (ROOT / "pyproject.toml").read_text("utf-8")
LICENSES = (ROOT / "docs" / "licenses.md").read_text("utf-8")
DATA = sorted(
    str(path.relative_to(ROOT))
    for folder in ("clipkit/assets", "examples/photos")
    for path in (ROOT / folder).rglob("*")
    if path.is_file() and path.name != "README.md"
)


def test_the_version_can_be_released() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", clipkit.__version__)
    number = clipkit.__version__.partition(".dev")[0]
    assert f"## [{number}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_changes_of_each_version_can_be_compared() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    versions = re.findall(r"^## \[([^\]]+)\]", changes, re.M)
    assert versions[0] == "Unreleased"
    assert [version for version in versions if f"\n[{version}]: https://" not in changes] == []


def test_all_data_of_the_package_are_shipped() -> None:
    assert 'package-data = { clipkit = ["py.typed", "assets/**/*"] }' in SETTINGS
    shipped = {f"clipkit/{path.relative_to(ROOT / 'clipkit')}" for path in asset_files()}
    assert shipped | {"clipkit/py.typed"} == set(release_check.NEEDED)


def asset_files() -> list[Path]:
    return [path for path in (ROOT / "clipkit" / "assets").rglob("*") if path.is_file()]


def test_assets_are_small_enough_for_the_wheel() -> None:
    assert sum(path.stat().st_size for path in asset_files()) < release_check.LARGEST - 3_000_000


def test_license_files_are_there() -> None:
    found = re.search(r"^license-files = \[(.+)\]$", SETTINGS, re.M)
    assert found is not None
    names = re.findall(r'"([^"]+)"', found[1])
    assert names == ["LICENSE"]
    assert all((ROOT / name).is_file() for name in names)


@pytest.mark.parametrize("name", DATA)
def test_every_file_of_others_has_its_terms(name: str) -> None:
    assert f"`{name}`" in LICENSES


@pytest.mark.parametrize("name", [name for name in DATA if name.count("/") == 2])
def test_the_license_names_data_that_are_not_ours(name: str) -> None:
    shown = (ROOT / "LICENSE").read_text("utf-8") + (ROOT / "examples/photos/README.md").read_text()
    assert (name if name.startswith("clipkit") else Path(name).name) in shown


def test_prompt_sets_name_their_license() -> None:
    assert {clipkit.prompt_set(name).license for name in clipkit.prompt_sets()} == {
        "MIT, Copyright (c) 2021 OpenAI"
    }


def test_the_citation_is_of_this_project() -> None:
    lines = (ROOT / "CITATION.cff").read_text("utf-8").splitlines()
    assert "cff-version: 1.2.0" in lines
    assert "license: MIT" in lines
    address = re.search(r'^Repository = "(.+)"$', SETTINGS, re.M)
    assert address is not None
    assert f'repository-code: "{address[1]}"' in lines


def write_wheel(path: Path, *names: str, license_file: str = "LICENSE") -> Path:
    """Write a wheel of empty files with metadata."""
    info = "clipkit_torch-1.0.dist-info"
    about = (
        "Metadata-Version: 2.4\nName: clipkit-torch\nVersion: 1.0\nLicense-Expression: MIT\n"
        + (f"License-File: {license_file}\n" if license_file else "")
    )
    with zipfile.ZipFile(path, "w") as archive:
        for name in (*names, f"{info}/licenses/LICENSE"):
            archive.writestr(name, "")
        archive.writestr(f"{info}/METADATA", about)
    return path


def test_a_whole_wheel_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheel = write_wheel(tmp_path / "a.whl", *release_check.NEEDED)
    check_wheel(wheel)
    release_check.describe(wheel)
    shown = capsys.readouterr().out
    assert "clipkit-torch 1.0, license MIT" in shown
    assert "clipkit/assets/tiny" in shown


def test_a_wheel_that_lacks_data_is_refused(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path / "a.whl", *release_check.NEEDED[1:])
    with pytest.raises(CheckError, match=r"lacks clipkit/py\.typed"):
        check_wheel(wheel)


def test_a_wheel_with_tests_in_it_is_refused(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path / "a.whl", *release_check.NEEDED, "tests/conftest.py")
    with pytest.raises(CheckError, match="no part of the package: tests"):
        check_wheel(wheel)


@pytest.mark.parametrize("name, problem", [("", "name no license"), ("NOTICE", "lacks .*NOTICE")])
def test_a_wheel_without_its_license_is_refused(name: str, problem: str, tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path / "a.whl", *release_check.NEEDED, license_file=name)
    with pytest.raises(CheckError, match=problem):
        check_wheel(wheel)


def test_a_large_wheel_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_check, "LARGEST", 100)
    wheel = write_wheel(tmp_path / "a.whl", *release_check.NEEDED)
    with pytest.raises(CheckError, match="100 are the most"):
        check_wheel(wheel)


def test_interpreters_are_found_or_told_to_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert find_python("3.999") is None
    wheel = write_wheel(tmp_path / "a.whl", *release_check.NEEDED)
    release_check.check_installed(wheel, "3.999", tmp_path)
    assert "Python 3.999: SKIPPED" in capsys.readouterr().out
    name = f"{sys.version_info[0]}.{sys.version_info[1]}"
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    found = find_python(name)
    assert found is None or found.parent == Path(sys.executable).parent


def test_what_a_program_answers_is_looked_at(tmp_path: Path) -> None:
    release_check.expect([sys.executable, "-c", "print('yes')"], tmp_path, "yes")
    with pytest.raises(CheckError, match="ended with 0: no"):
        release_check.expect([sys.executable, "-c", "print('no')"], tmp_path, "yes")
    with pytest.raises(CheckError, match="ended with 3: yes"):
        code = "import sys; print('yes'); sys.exit(3)"
        release_check.expect([sys.executable, "-c", code], tmp_path, "yes")
