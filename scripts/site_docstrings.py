"""Show the docstrings of clipkit on the site: an extension of griffe, which mkdocs.yml names."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import griffe
from site_markdown import address_of, markdown_of, names_found_by

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"


@cache
def public_names() -> dict[str, str]:
    """Return the address of each name of the reference, those of the front door first."""
    found: list[str] = []
    for page in sorted(REFERENCE.glob("*.md")):
        found += re.findall(r"^::: (\S+)", page.read_text("utf-8"), re.M)
    return names_found_by(sorted(found, key=lambda address: (address.count("."), address)))


def owner_of(obj: griffe.Object) -> griffe.Class | None:
    """Return the class that an object is, or belongs to."""
    if isinstance(obj, griffe.Class):
        return obj
    return obj.parent if isinstance(obj.parent, griffe.Class) else None


def members_of(owner: griffe.Class) -> Iterator[str]:
    """Yield the names of a class's methods, those of the classes that it stands on included."""
    for name, member in owner.all_members.items():
        if not name.startswith("_") and (member.is_function or member.has_labels("property")):
            yield name


class Docstrings(griffe.Extension):
    """Rewrite each docstring as the Markdown that is shown."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Rewrite the docstring of an object, if it has one."""
        if obj.docstring is None:
            return
        names = public_names()
        owner = owner_of(obj)
        base = names.get(owner.name, owner.path) if owner else ""
        members = {name: f"{base}.{name}" for name in members_of(owner)} if owner else {}
        takes = isinstance(obj, griffe.Function | griffe.Class)
        own = {one.name for one in obj.parameters} if takes else set[str]()

        def find(name: str) -> str | None:
            if name in own or name == obj.name:
                return None
            return address_of(name, names, members)

        obj.docstring.value = markdown_of(obj.docstring.value, find)
