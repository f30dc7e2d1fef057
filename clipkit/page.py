"""Frame pages that need nothing beside themselves, all of one look.

A page has a policy that forbids a browser to load anything but the page's own data, and to run
anything but the page's own script: names of files and labels may come from anywhere.
"""

import base64
import hashlib
from html import escape
from typing import NamedTuple

from clipkit.visible import visible

# Colors of light and dark are told apart as one by those who see less color: blue and orange.
STYLE = """\
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1d2430; --quiet: #5b6675; --line: #dfe3e9;
  --right: #1f6fb2; --wrong: #c2571a; --fill: #cfe2f3;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161c; --card: #1b212a; --ink: #e6eaf0; --quiet: #9aa6b5; --line: #323b47;
    --right: #6db3f0; --wrong: #f0975a; --fill: #23405c;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
main { max-width: 1040px; margin: 0 auto; padding: 24px 16px 48px; outline: none; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 4px; }
p { margin: 0 0 12px; }
.quiet { color: var(--quiet); }
.how { max-width: 70ch; margin-bottom: 20px; }
section, .figure {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px;
}
section { padding: 16px 18px; margin-top: 16px; }
section > p { max-width: 75ch; font-size: 0.9rem; }
.images { display: grid; gap: 12px; grid-template-columns: repeat(auto-fill, minmax(160px, 1fr));
  padding: 0; margin: 0; list-style: none; }
.images li { border: 1px solid var(--line); border-radius: 8px; overflow: hidden; min-width: 0; }
.images img { display: block; width: 100%; aspect-ratio: 4 / 3; object-fit: contain;
  background: var(--page); }
.images .file { color: var(--quiet); font-size: 0.75rem; line-height: 1.3; }
footer { margin-top: 20px; font-size: 0.85rem; color: var(--quiet); }
@media (max-width: 480px) {
  main { padding: 16px 10px 32px; }
  section { padding: 14px 12px; }
  .images { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 8px; }
}
@media print { section { break-inside: avoid; } }
"""

_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'"
)
_FOOTER = "Made by clipkit. The page holds all that it shows and loads nothing."


class Frame(NamedTuple):
    """Hold what stands before and after the content of a page."""

    head: str
    foot: str


def frame(title: str, *, style: str = "", script: str = "") -> Frame:
    """Return what stands around the content of a page, which is in UTF-8.

    Args:
        title: as a browser shows it on its tab.
        style: CSS behind `STYLE`.
        script: JavaScript that runs when the content is there.

    Example:
        head, foot = frame("Cats")
        page = f"{head}<h1>Cats</h1>{foot}"
    """
    inside = f"\n{script}"
    allowed = f"'sha256-{_digest(inside)}'" if script else "'none'"
    policy = f"{_POLICY}; script-src {allowed}"
    head = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{as_html(title)}</title>\n<style>\n{STYLE}{style}</style>\n</head>\n<body>\n"
        '<main tabindex="-1">\n'
    )
    ending = f"<script>{inside}</script>\n" if script else ""
    return Frame(head, f"\n<footer>{_FOOTER}</footer>\n</main>\n{ending}</body>\n</html>\n")


def as_html(text: str) -> str:
    """Return a text as HTML. Marks that reverse the direction of writing are shown as escapes.

    Example:
        >>> as_html("<b> & \\u202e")
        '&lt;b&gt; &amp; \\\\u202e'
    """
    return escape(visible(text))


def _digest(script: str) -> str:
    """Return the digest by which a policy allows one script."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
