"""The site has all pages and all public names, and its links lead somewhere.

`.ci/run` builds it with `mkdocs build --strict`; these tests need no mkdocs.
"""

import importlib
import posixpath
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from scripts import site_links
from scripts import site_markdown as site
from tests.helpers.package import MODULES
from tests.helpers.public import parts_of, public_objects

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))
CONFIG = (ROOT / "mkdocs.yml").read_text("utf-8")
KB = 1024
# Not behind a door, and in the reference all the same: the towers of a model, and what stands
# beside OpenAI's names.
BESIDE_THE_DOORS = {
    "clipkit.models.resnet.ModifiedResNet",
    "clipkit.models.text_transformer.TextTransformer",
    "clipkit.models.vision_transformer.VisionTransformer",
    "clipkit.openai.build.SettingError",
    "clipkit.openai.installation.OtherClipError",
    "clipkit.openai.simple_tokenizer.SimpleTokenizer",
}


def text_of(page: str) -> str:
    """Return a page as the site has it, with the files that it includes."""
    folder = (DOCS / page).parent
    text = (DOCS / page).read_text("utf-8")
    return site.with_included(text, lambda path: (folder / path).read_text("utf-8"))


def without_code(text: str) -> str:
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S)


def links_of(page: str) -> list[str]:
    """Return the links of a page to other pages and files, as the site has them."""
    text = without_code(site.with_links(text_of(page), page))
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if ":" not in link]


def described() -> list[str]:
    """Return the addresses of all names that the reference describes."""
    found: list[str] = []
    for page in (DOCS / "reference").glob("*.md"):
        found += re.findall(r"^::: (\S+)", page.read_text("utf-8"), re.M)
    return found


def value_of(address: str) -> Any:
    """Return what an address of the reference leads to: a part of the longest module in it."""
    parts = address.split(".")
    ends = [end for end in range(len(parts), 0, -1) if ".".join(parts[:end]) in MODULES]
    value: Any = importlib.import_module(".".join(parts[: ends[0]]))
    for name in parts[ends[0] :]:
        value = getattr(value, name)
    return value


def anchors_of(page: str) -> set[str]:
    """Return the anchors of a page: its headings, and the names that it describes."""
    text = without_code(text_of(page))
    anchors = {site.anchor_of(title) for title in re.findall(r"^#+ (.+)$", text, re.M)}
    for address in re.findall(r"^::: (\S+)", text, re.M):
        value = value_of(address)
        anchors.add(address)
        if isinstance(value, type):
            anchors |= {part.name for part in parts_of(address, value)}
    return anchors


def test_the_navigation_has_every_page_once() -> None:
    _, _, navigation = CONFIG.partition("\nnav:\n")
    named = re.findall(r"[\w/]+\.md", navigation)
    assert sorted(named) == PAGES


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_pages_and_their_headings(page: str) -> None:
    wrong: list[str] = []
    for link in links_of(page):
        target, _, anchor = link.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
        path = path if target else page
        if not (DOCS / path).exists() or path.startswith(".."):
            wrong.append(link)
        elif anchor and anchor not in anchors_of(path):
            wrong.append(link)
    assert wrong == []


@pytest.mark.parametrize("page", PAGES)
def test_images_lie_beside_the_pages_and_are_small(page: str) -> None:
    for link in re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", text_of(page)):
        image = ((DOCS / page).parent / link).resolve()
        assert DOCS in image.parents, link
        assert image.stat().st_size <= 60 * KB, link


def test_the_reference_has_every_public_name_once() -> None:
    addresses = [address for address in described() if address not in MODULES]
    values = {address: value_of(address) for address in addresses}
    public = {id(value): name for name, value in public_objects().items()}
    twice = len(addresses) - len({id(value) for value in values.values()})
    assert twice == 0
    beside = {address for address, value in values.items() if id(value) not in public}
    assert beside == BESIDE_THE_DOORS
    missing = set(public) - {id(value) for value in values.values()}
    assert {public[one] for one in missing} == set()


def test_figures_of_the_first_page_are_on_the_pages_that_it_leads_to() -> None:
    """A row of the map has figures, and links to where they are from."""
    rows = [row for row in text_of("index.md").splitlines() if row.startswith("| ")]
    checked = 0
    for row in rows:
        pages = [text_of(link) for link in re.findall(r"\]\(([\w/]+\.md)\)", row)]
        for figure in re.findall(r"\d+\.\d+", row):
            assert any(re.search(rf"(?<![\d.]){re.escape(figure)}", page) for page in pages), row
            checked += 1
    assert checked > 20


def test_the_site_asks_no_other_host() -> None:
    assert "font: false" in CONFIG
    assert re.findall(r"https?://[^\s\"]+", CONFIG) == ["https://github.com/clipkit/clipkit"]
    page = '<a href="x" class="md-source" data-md-component="source">'
    assert site_links.on_post_page(page) == '<a href="x" class="md-source">'


@pytest.mark.parametrize("script", re.findall(r"scripts/\w+\.py", CONFIG))
def test_scripts_of_the_site_exist(script: str) -> None:
    assert (ROOT / script).is_file()


@pytest.mark.parametrize(
    ("link", "page", "expected"),
    [
        ("../examples/server.py", "serve.md", "{}/blob/main/examples/server.py"),
        ("../examples", "serve.md", "{}/tree/main/examples"),
        ("../LICENSE", "serve.md", "{}/blob/main/LICENSE"),
        ("../README.md#use", "serve.md", "{}/blob/main/README.md#use"),
        ("../CHANGELOG.md", "serve.md", "changelog.md"),
        ("../../CONTRIBUTING.md#tests", "reference/index.md", "../contributing.md#tests"),
        ("../serve.md", "reference/index.md", "../serve.md"),
        ("../../docs/serve.md", "reference/index.md", "../serve.md"),
        ("search.jpg", "search.md", "search.jpg"),
        ("#use", "search.md", "#use"),
        ("https://example.org/../x", "search.md", "https://example.org/../x"),
    ],
)
def test_links_that_leave_the_pages_lead_to_the_repository(
    link: str, page: str, expected: str
) -> None:
    assert site.link_of(link, page) == expected.format(site.REPOSITORY)


def test_links_in_code_stay_as_they_are() -> None:
    page = "[a](../x.py)\n```python\nf[a](../x.py)\n```\n[b](../y.py)"
    shown = site.with_links(page, "serve.md")
    assert "f[a](../x.py)" in shown
    assert shown.count(f"({site.REPOSITORY}/blob/main/") == 2


def test_an_included_file_comes_without_its_title_and_with_its_links() -> None:
    read = {"../A.md": "# A\n\nSee [B](B.md), [C](https://c.org) and [D](#d).\n"}
    shown = site.with_included("# Mine\n\n<!-- include ../A.md -->\n", read.__getitem__)
    assert shown == "# Mine\n\nSee [B](../B.md), [C](https://c.org) and [D](#d).\n"


def test_a_part_of_a_file_can_be_included() -> None:
    text = "# A\n\n## One\n\n1\n\n### Of it\n\n2\n\n## Two\n\n3\n"
    read = {"../A.md": text}
    shown = site.with_included("<!-- include ../A.md#one -->\n", read.__getitem__)
    assert shown == "1\n\n### Of it\n\n2\n"
    with pytest.raises(ValueError, match="there is no heading #three"):
        site.with_included("<!-- include ../A.md#three -->\n", read.__getitem__)


DOCSTRING = """Return x, as `load` does; not "<cat>".

More of `it`.

Args:
    x: (N, D), a
        tensor.
    y, z: see `load`.

Returns:
    (N,): one number each.

Raises:
    ConfigError: always.

Example:
    >>> load(1)
    2
"""


def test_docstrings_become_markdown() -> None:
    shown = site.markdown_of(DOCSTRING, {"load": "clipkit.load"}.get)
    link = '<autoref optional identifier="clipkit.load"><code>load</code></autoref>'
    assert shown.split("\n\n") == [
        f'Return x, as {link} does; not "&lt;cat>".',
        "More of `it`.",
        "**Arguments**",
        f"- `x`: (N, D), a tensor.\n- `y`, `z`: see {link}.",
        "**Returns**",
        "(N,): one number each.",
        "**Raises**",
        "- `ConfigError`: always.",
        "**Example**",
        "```pycon\n>>> load(1)\n2\n```",
    ]


def test_drawings_and_programs_become_code() -> None:
    shown = site.markdown_of("Draw.\n\nA\n├── B\n\nExample:\n    f(`x`)\n", lambda _: None)
    assert shown.split("\n\n")[1:] == [
        "```text\nA\n├── B\n```",
        "**Example**",
        "```python\nf(`x`)\n```",
    ]


def test_names_lead_to_the_class_first_and_then_to_the_front_door() -> None:
    names = site.names_found_by(["clipkit.load", "clipkit.Index", "clipkit.openai.load"])
    members = {"load": "clipkit.ImageClassifier.load"}
    assert site.address_of("load", names, {}) == "clipkit.load"
    assert site.address_of("load", names, members) == "clipkit.ImageClassifier.load"
    assert site.address_of("openai.load", names, {}) == "clipkit.openai.load"
    assert site.address_of("Index.build", names, {}) == "clipkit.Index.build"
    assert site.address_of("k", names, members) is None


def test_the_page_of_errors_shows_their_tree() -> None:
    module: ModuleType = importlib.import_module("clipkit.errors")
    assert "```text\nClipkitError\n├──" in site.markdown_of(module.__doc__ or "", lambda _: None)


def test_pipes_in_the_code_of_a_table_have_no_backslash() -> None:
    page = "| a | b |\n|---|---|\n| `x \\| y` | c \\| d |\n\n`grep 'a\\|b'`\n"
    shown = "| a | b |\n|---|---|\n| `x | y` | c \\| d |\n\n`grep 'a\\|b'`\n"
    assert site.with_plain_pipes(page) == shown
