"""Turn docstrings of clipkit into Markdown, and links that leave the pages into links that work.

`site_docstrings.py` and `site_links.py` bring it into the build of the site.
"""

import posixpath
import re
from collections.abc import Callable, Iterator, Mapping

REPOSITORY = "https://github.com/clipkit/clipkit"
# Files outside of the pages that the site has as a page of its own.
PAGE_OF = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
TITLES = {
    "Args": "Arguments",
    "Attributes": "Attributes",
    "Returns": "Returns",
    "Yields": "Yields",
    "Raises": "Raises",
    "Example": "Example",
}
_HEAD = re.compile(rf"^({'|'.join(TITLES)}):$")
_FENCE = re.compile(r"^( *```.*?^ *```[^\n]*$)", re.M | re.S)
_CODE = re.compile(r"(`[^`\n]+`)")
_TERM = re.compile(r"[\w.]+(?:, [\w.]+)*(?= ?(?:\([^)]*\))?: )")
_LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
_INCLUDE = re.compile(r"^<!-- include ([^\s#]+)(?:#(\S+))? -->$", re.M)

# The address of a public name, for those that have one.
Find = Callable[[str], str | None]


def sections_of(docstring: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the parts of a docstring with their heads, "" for the text.

    Lines of a part come without the indentation that all of it has.
    """
    title = ""
    lines: list[str] = []
    for line in docstring.splitlines():
        head = _HEAD.match(line)
        if head is None and (not title or line[:1] in ("", " ")):
            lines.append(line.removeprefix("    ") if title else line)
            continue
        yield title, lines
        title, lines = (head.group(1), []) if head else ("", [line])
    yield title, lines


def items_of(lines: list[str]) -> list[str]:
    """Return the entries of a part such as "Args", each on one line."""
    items: list[str] = []
    for line in lines:
        if line.startswith(" ") and items:
            items[-1] += " " + line.strip()
        elif line:
            items.append(line)
    return items


def linked(text: str, find: Find) -> str:
    """Return a text in which public names between backticks lead to where they are described."""
    parts = _CODE.split(text)
    for i, part in enumerate(parts):
        if i % 2 == 0:
            parts[i] = part.replace("<", "&lt;")
        else:
            parts[i] = code_of(part[1:-1], find)
    return "".join(parts)


def code_of(name: str, find: Find) -> str:
    """Return a piece of code, which leads to where it is described if it is a public name."""
    address = find(name)
    if address is None:
        return f"`{name}`"
    return f'<autoref optional identifier="{address}"><code>{name}</code></autoref>'


def item_of(item: str, find: Find) -> str:
    """Return one entry of a part as an item of a list, its names as code."""
    names = _TERM.match(item)
    if names is None:
        return f"- {linked(item, find)}"
    rest = item[names.end() :]
    terms = ", ".join(code_of(name, find) for name in names.group().split(", "))
    return f"- {terms}{linked(rest, find)}"


def paragraphs_of(lines: list[str]) -> list[str]:
    """Return the paragraphs of a text."""
    return "\n".join(lines).strip("\n").split("\n\n")


def paragraph_of(text: str, find: Find) -> str:
    """Return a paragraph; one that is drawn with lines, such as a tree, as a block of code."""
    return f"```text\n{text}\n```" if "──" in text else linked(text, find)


def example_of(lines: list[str]) -> str:
    """Return an example as a block of code."""
    code = "\n".join(lines).strip("\n")
    language = "pycon" if ">>> " in code else "python"
    return f"```{language}\n{code}\n```"


def markdown_of(docstring: str, find: Find) -> str:
    """Return a docstring as Markdown.

    Args:
        docstring: without the indentation of its code.
        find: the address of a name, or None where it has none.
    """
    parts: list[str] = []
    for title, lines in sections_of(docstring):
        if not any(lines):
            continue
        if title:
            parts.append(f"**{TITLES[title]}**")
        if title == "Example":
            parts.append(example_of(lines))
        elif title in ("Args", "Attributes", "Raises"):
            parts.append("\n".join(item_of(item, find) for item in items_of(lines)))
        else:
            parts += [paragraph_of(text, find) for text in paragraphs_of(lines)]
    return "\n\n".join(parts)


def names_found_by(addresses: list[str]) -> dict[str, str]:
    """Return the address of each way to spell a public name; the first of several counts.

    Example:
        >>> sorted(names_found_by(["clipkit.search.Index"]))
        ['Index', 'clipkit.search.Index', 'search.Index']
    """
    found: dict[str, str] = {}
    for address in addresses:
        parts = address.split(".")
        for start in reversed(range(len(parts))):
            found.setdefault(".".join(parts[start:]), address)
    return found


def address_of(name: str, names: Mapping[str, str], members: Mapping[str, str]) -> str | None:
    """Return the address of a name as it is written in a docstring, None where it has none.

    Args:
        name: as it is written: `load`, `clipkit.load`, `ImageClassifier.load`.
        names: the addresses of all public names.
        members: those of the members of the class that the docstring belongs to.
    """
    if name in members:
        return members[name]
    if name in names:
        return names[name]
    above, _, last = name.rpartition(".")
    return f"{names[above]}.{last}" if above in names else None


def link_of(link: str, page: str) -> str:
    """Return a link of a page, led to the repository if it leaves the pages.

    Args:
        link: as it stands on the page, such as "../examples/server.py".
        page: its path below the folder of the pages, such as "serve.md".
    """
    target, mark, anchor = link.partition("#")
    if not target or ":" in target:
        return link
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
    folder = posixpath.dirname(page)
    if path in PAGE_OF:
        return posixpath.relpath(PAGE_OF[path], folder or ".") + mark + anchor
    if path.startswith("docs/"):
        return posixpath.relpath(path, posixpath.join("docs", folder)) + mark + anchor
    if path.startswith(".."):
        return link
    kind = "blob" if "." in posixpath.basename(path) or path == "LICENSE" else "tree"
    return f"{REPOSITORY}/{kind}/main/{path}{mark}{anchor}"


def with_links(markdown: str, page: str) -> str:
    """Return the Markdown of a page in which links that leave the pages lead to the repository."""
    parts = _FENCE.split(markdown)
    for i in range(0, len(parts), 2):
        parts[i] = _LINK.sub(lambda link: link_of(link.group(), page), parts[i])
    return "".join(parts)


def with_plain_pipes(markdown: str) -> str:
    r"""Return the Markdown of a page with `|` for `\|` in the code of its tables.

    GitHub wants the backslash there, and Python-Markdown would show it.
    """
    lines = markdown.split("\n")
    for number, line in enumerate(lines):
        if line.startswith("|"):
            lines[number] = _CODE.sub(lambda code: code.group().replace(r"\|", "|"), line)
    return "\n".join(lines)


def with_included(markdown: str, read: Callable[[str], str]) -> str:
    """Return the Markdown of a page with the files that it names in the place of their names.

    A line `<!-- include ../CHANGELOG.md -->` stands for that file, and one with
    `../README.md#use` for what is under that heading, both without the title. Links of the file
    are read from where the page is.

    Args:
        markdown: of the page.
        read: the text of a file, by its path from the page.
    """

    def text_of(line: re.Match[str]) -> str:
        path, anchor = line.groups()
        text = under_heading(read(path), anchor)
        folder = posixpath.dirname(path)
        return _LINK.sub(lambda link: moved(link.group(), folder), text.strip("\n"))

    return _INCLUDE.sub(text_of, markdown)


def anchor_of(title: str) -> str:
    """Return the anchor of a heading, on GitHub as on the site."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).strip()
    return re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")


def under_heading(text: str, anchor: str | None) -> str:
    """Return what is under a heading up to the next one of its level, under the first if None."""
    parts = re.split(r"^(#+) (.+)$", text, flags=re.M)  # before, then level, title, text of each
    for i in range(1, len(parts), 3):
        if anchor in (None, anchor_of(parts[i + 1])):
            below = parts[i + 2]
            for j in range(i + 3, len(parts), 3):
                if len(parts[j]) <= len(parts[i]):
                    break
                below += f"{parts[j]} {parts[j + 1]}{parts[j + 2]}"
            return below
    raise ValueError(f"there is no heading #{anchor}")


def moved(link: str, folder: str) -> str:
    """Return a link of a file in a folder as it is from elsewhere."""
    if ":" in link or link.startswith("#"):
        return link
    return posixpath.join(folder, link)
