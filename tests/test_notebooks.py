"""The notebooks are light, lead somewhere, and run from top to bottom."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import processes

ROOT = Path(__file__).parents[1]
NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
LARGEST = 20_000  # bytes of a notebook, which has no output in it
FIGURES = {"classify": 2, "see_inside": 5}  # that each shows when it runs
# In a process of its own, as its libraries warn of things that are not ours.
RUN = """
import sys
import nbclient, nbformat

source, folder, target = sys.argv[1:]
notebook = nbformat.read(source, 4)
resources = {"metadata": {"path": folder}}
nbclient.NotebookClient(
    notebook, timeout=900, startup_timeout=600, resources=resources).execute()
nbformat.write(notebook, target)
"""


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


def sources(notebook: dict[str, Any], kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_there_are_two() -> None:
    assert NOTEBOOKS.keys() == FIGURES.keys()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_light_and_has_no_outputs(name: str) -> None:
    assert NOTEBOOKS[name].stat().st_size < LARGEST
    for cell in read(NOTEBOOKS[name])["cells"]:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_cells_have_names_of_their_own(name: str) -> None:
    names = [cell["id"] for cell in read(NOTEBOOKS[name])["cells"]]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_links_lead_somewhere(name: str) -> None:
    text = "\n".join(sources(read(NOTEBOOKS[name]), "markdown"))
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert links != []
    assert [link for link in links if not (ROOT / "notebooks" / link).exists()] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_and_shows_its_figures(name: str, tmp_path: Path) -> None:
    target = tmp_path / "run.ipynb"
    arguments = ["-c", RUN, str(NOTEBOOKS[name]), str(ROOT / "notebooks"), str(target)]
    variables = {"IPYTHONDIR": str(tmp_path / "ipython"), "PYTHONWARNINGS": "ignore"}
    process = processes.start(arguments, variables)
    _, error = process.communicate(timeout=1200)
    assert process.returncode == 0, error
    cells = [cell for cell in read(target)["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert all(cell["execution_count"] for cell in cells)
    assert [output for output in outputs if output.get("name") == "stderr"] == []
    shown = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(shown) == FIGURES[name]
