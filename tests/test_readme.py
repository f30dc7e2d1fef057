"""What the README and the other pages show is true: code runs, settings are read, links lead on."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import clipkit
from tests.helpers.imported import without_modules

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
DOCS = sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md"))
REFERENCE = sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs/reference").glob("*.md"))
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *DOCS, *REFERENCE]
# The photos that the README speaks of, and which of the examples stands in for each.
PHOTOS = {"photo": "cat", "cat1": "cat", "cat2": "cat", "dog1": "coffee", "dog2": "rocket"}


def blocks_of(language: str, text: str = README) -> list[str]:
    """Return a page's blocks of code in a language, by default the README's."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_python_blocks_run(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All blocks in one go, on the embedded checkpoint in place of a downloaded one."""
    blocks = blocks_of("python")
    assert len(blocks) == 6
    load = clipkit.load

    def load_tiny(name: str, dtype: torch.dtype = dtype) -> Any:
        return load("tiny", "cpu", dtype=dtype)

    monkeypatch.setattr(clipkit, "load", load_tiny)
    for name, photo in PHOTOS.items():
        shutil.copy(ROOT / "examples" / "photos" / f"{photo}.jpg", tmp_path / f"{name}.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec("\n".join(blocks), names)
    assert names["classifier"].labels == ["cat", "dog", "rocket", "bicycle"]
    assert (tmp_path / "pets.onnx").exists()
    assert names["probabilities"].shape == (1, 2)
    assert names["probabilities"].sum() == pytest.approx(1, abs=1e-3)
    assert all(p.grad is not None for p in names["model"].parameters())
    assert names["fast"].is_optimized
    assert names["half"].dtype == torch.bfloat16


def test_the_first_python_block_needs_no_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shutil.copy(ROOT / "examples" / "photos" / "cat.jpg", tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    exec(blocks_of("python")[0], {})
    assert capsys.readouterr().out.startswith("[('cat', 0.")


@pytest.fixture
def _no_other_clip() -> Iterator[None]:
    """Keep modules `clip` that a page installs apart from those of the other tests."""
    with without_modules("clip"):
        yield


@pytest.mark.usefixtures("_no_other_clip")
@pytest.mark.parametrize("page", DOCS)
def test_the_python_blocks_of_a_page_run_and_print_what_it_shows(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = "\n".join(blocks_of("python", (ROOT / page).read_text("utf-8")))
    monkeypatch.chdir(tmp_path)
    exec(program, {})
    shown = re.findall(r"^ *print\(.*\)  # (.+)$", program, re.M)
    assert len(shown) == program.count("print(")
    assert capsys.readouterr().out.splitlines() == shown


def test_the_prompt_sets_are_counted_right() -> None:
    counted = re.search(r"all (\d+), with class names", README)
    assert counted is not None
    assert int(counted.group(1)) == len(clipkit.prompt_sets())


def test_the_settings_of_a_run_can_be_read(tmp_path: Path) -> None:
    (block,) = blocks_of("json")
    file = tmp_path / "run.json"
    file.write_text(block)
    config = clipkit.RunConfig.read(file)
    assert config.batch_size == json.loads(block)["batch_size"]
    assert config.train.evaluate_every == 2000


def test_there_are_two_blocks_of_bash_for_the_ci() -> None:
    main_job, tests = blocks_of("bash")
    assert "clipkit classify examples/photos/coffee.jpg" in main_job
    assert "pytest" in tests


@pytest.mark.parametrize("page", PAGES)
def test_links_and_paths_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    files = [link.partition("#")[0] for link in links]  # test_site.py follows the anchors
    missing = [file for file in files if not (ROOT / page).parent.joinpath(file).exists()]
    paths = re.findall(r"`((?:tests|examples|clipkit|docs|scripts|\.ci)/[\w./]+)`", text)
    missing += [path for path in paths if not (ROOT / path).exists()]
    assert missing == []


def test_names_of_the_package_exist() -> None:
    for name in set(re.findall(r"`clipkit\.(\w+)", README)):
        assert hasattr(clipkit, name), name
