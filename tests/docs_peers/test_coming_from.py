"""Run the code of the pages "Coming from ...", theirs and ours, and compare what both compute.

Fenced blocks of Python are clipkit's. Indented blocks behind a comment `<!-- theirs -->` are the
peer's; behind `<!-- theirs 4 -->` they are those of its version 4. The blocks of a page run in
their order, in one folder. Results that have the same name in both programs must be equal.
"""

import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import clipkit.openai
from tests.helpers.imported import without_modules

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(
    r"^```python\n(?P<ours>[\s\S]*?)^```$"
    r"|^<!-- theirs ?(?P<version>\d*) -->\n\n(?P<theirs>(?:(?: {4}[^\n]*)?\n)+)",
    re.M,
)
Names = dict[str, Any]


@dataclass(frozen=True)
class Peer:
    """Hold what a page is about.

    Attributes:
        package: that their program imports; "clip" is clipkit.openai here.
        distribution: of the package; none for clipkit's own.
        results: the names that both programs have.
        noise: by which results may differ, over the largest number of each.
    """

    package: str
    distribution: str | None
    results: set[str]
    noise: float = 1e-5


PAGES = {
    "from_open_clip.md": Peer(
        "open_clip",
        "open_clip_torch",
        {
            *("image", "tokens", "image_features", "text_features", "logits", "probabilities"),
            *("cosines", "label", "loss", "gradient", "last_map", "images"),
        },
        noise=1e-4,  # of the gradient; the others are nearer
    ),
    "from_transformers.md": Peer(
        "transformers",
        "transformers",
        {
            *("pixels", "image_features", "text_features", "logits", "probabilities"),
            *("image_unit", "loss", "after_first_block", "after_last_block", "word_tokens"),
            *("attention", "label", "probability"),
        },
    ),
    "from_sentence_transformers.md": Peer(
        "sentence_transformers",
        "sentence-transformers",
        {"text_features", "image_features", "cosines", "best"},
    ),
    "openai.md": Peer(
        "clip",
        None,
        {"photo", "ids", "image_features", "logits", "probabilities", "cosines"},
    ),
    "scikit_learn.md": Peer("sklearn", "scikit-learn", {"probabilities", "predicted"}, noise=1e-3),
}


def blocks_of(text: str, version: str) -> list[tuple[str, str]]:
    """Return "ours" or "theirs" and the code of each block of a page, for a peer's version."""
    blocks: list[tuple[str, str]] = []
    for found in BLOCK.finditer(text):
        if found["ours"] is not None:
            blocks.append(("ours", found["ours"]))
        elif found["version"] in ("", version):
            blocks.append(("theirs", re.sub(r"^ {4}", "", found["theirs"], flags=re.M)))
    return blocks


def run(page: str, version: str) -> tuple[Names, Names]:
    """Return the names of both programs of a page after they ran, ours first."""
    programs: dict[str, Names] = {"ours": {}, "theirs": {}}
    for side, code in blocks_of((DOCS / page).read_text("utf-8"), version):
        exec(compile(code, f"{page}, {side}", "exec"), programs[side])
    return programs["ours"], programs["theirs"]


def as_array(value: object) -> NDArray[Any] | None:
    """Return a result as an array of numbers or of texts, or None for what is no result."""
    if isinstance(value, torch.Tensor):
        return value.detach().double().numpy()
    if isinstance(value, list):
        first = value[0] if value else None
        return np.array(value) if isinstance(first, str | int | float) else None
    return np.array(value) if isinstance(value, str | int | float | np.ndarray) else None


def shared_results(ours: Names, theirs: Names) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Return the results that both programs name."""
    found: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}
    for name in ours.keys() & theirs.keys():
        one, other = as_array(ours[name]), as_array(theirs[name])
        if one is not None and other is not None:
            found[name] = one, other
    return found


def difference(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Return the largest difference, over the largest number; infinity for other shapes or texts.

    Integers differ by as much as they do.
    """
    if one.shape != other.shape:
        return float("inf")
    if one.dtype.kind not in "fiu" or other.dtype.kind not in "fiu":
        return 0.0 if np.array_equal(one, other) else float("inf")
    distance = float(np.abs(one - other).max())
    return distance / max(float(np.abs(other).max()), 1e-12)


def installed(peer: Peer) -> str:
    """Return the first number of the version of a peer, or skip the test without it."""
    if peer.distribution is None:
        return ""
    pytest.importorskip(peer.package)
    return metadata.version(peer.distribution).partition(".")[0]


@pytest.fixture
def _openais_clip(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let `import clip` mean clipkit.openai, and ViT-B/32 the embedded model there."""
    load = clipkit.openai.load

    def load_tiny(name: str, device: str) -> Any:
        assert name in ("ViT-B/32", "tiny")
        return load("tiny", device=device)

    monkeypatch.setattr(clipkit.openai, "load", load_tiny)
    with without_modules("clip"):
        yield


@pytest.mark.usefixtures("_openais_clip")
@pytest.mark.parametrize("page", PAGES)
def test_both_programs_of_a_page_compute_the_same(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = PAGES[page]
    version = installed(peer)
    monkeypatch.chdir(tmp_path)
    results = shared_results(*run(page, version))
    differences = {name: difference(*pair) for name, pair in results.items()}
    print(page, {name: f"{value:.0e}" for name, value in sorted(differences.items())})
    assert peer.results - results.keys() == set()
    assert {name: value for name, value in differences.items() if value > peer.noise} == {}


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_are_found(page: str) -> None:
    text = (DOCS / page).read_text("utf-8")
    blocks = blocks_of(text, "5")
    theirs = [code for side, code in blocks if side == "theirs"]
    assert len(theirs) == text.count("<!-- theirs -->") + text.count("<!-- theirs 5 -->")
    assert len(blocks) - len(theirs) == text.count("```python\n")
    assert all(not code.startswith(" ") for code in theirs)


def test_results_that_differ_are_told() -> None:
    ours: Names = {"a": torch.ones(2), "b": "cat", "c": [1, 2], "d": len, "e": 1.0}
    theirs: Names = {"a": np.ones(3), "b": "dog", "c": [1, 3], "d": len, "f": 1.0}
    differences = {name: difference(*p) for name, p in shared_results(ours, theirs).items()}
    assert differences == {"a": float("inf"), "b": float("inf"), "c": pytest.approx(1 / 3)}
    assert difference(np.array([1.0, 200.0]), np.array([1.001, 200.0])) == pytest.approx(5e-6)


def test_the_versions_of_a_page_are_told_apart() -> None:
    text = "<!-- theirs 4 -->\n\n    a = 4\n\n<!-- theirs 5 -->\n\n    a = 5\n\n    b = 5\n\nx\n"
    assert [code.strip() for _, code in blocks_of(text, "4")] == ["a = 4"]
    assert [code.strip() for _, code in blocks_of(text, "5")] == ["a = 5\n\nb = 5"]


def test_the_pages_name_what_the_peers_have() -> None:
    """Names of open_clip and transformers in the tables of the pages exist."""
    for page, package in [
        ("from_open_clip.md", "open_clip"),
        ("from_transformers.md", "transformers"),
    ]:
        peer = pytest.importorskip(package)
        known = {
            "create_model_and_transforms",
            "create_model_from_pretrained",
            "list_pretrained",
            "get_tokenizer",
            "build_zero_shot_classifier",
            "ClipLoss",
            "CLIPModel",
            "CLIPProcessor",
            "CLIPTokenizer",
            "CLIPImageProcessor",
            "CLIPForImageClassification",
        }
        text = (DOCS / page).read_text("utf-8")
        for name in known:
            if re.search(rf"\b{name}\b", text):
                assert hasattr(peer, name), name


def test_names_of_clipkit_in_the_pages_exist() -> None:
    for page in [*PAGES, "from_rclip.md"]:
        text = (DOCS / page).read_text("utf-8")
        for module, name in set(re.findall(r"\b(clipkit(?:\.[a-z_]+)*)\.(\w+)\(", text)):
            assert hasattr(importlib.import_module(module), name), f"{module}.{name}"
