"""Make the links of pages work on the site: hooks of mkdocs, which mkdocs.yml names.

Pages are read on GitHub too, where a link such as `../examples/server.py` leads to the file. The
site has no such file, so there it leads to the repository.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent))

from site_markdown import with_included, with_links, with_plain_pipes

if TYPE_CHECKING:
    from mkdocs.structure.pages import Page


def on_page_markdown(markdown: str, page: "Page", **_: object) -> str:
    """Return a page with what it includes, with tables and links that work on the site."""
    folder = Path(page.file.abs_src_path or "").parent
    markdown = with_included(markdown, lambda path: (folder / path).read_text("utf-8"))
    return with_links(with_plain_pipes(markdown), page.file.src_uri)


def on_post_page(output: str, **_: object) -> str:
    """Return a page that asks no other host: the theme would ask GitHub for its stars."""
    return output.replace(' data-md-component="source"', "")
