"""Read pages of HTML, and run them in a browser where there is one."""

import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "img", "wbr"}
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Page(HTMLParser):
    """Gather tags with their attributes, and the texts; and check that what opens is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def check_loads_nothing(text: str, page: Page) -> None:
    """Check that nothing on a page makes a browser load anything; links may lead elsewhere."""
    assert page.open == []
    assert not {"link", "iframe", "object", "embed", "base", "form"} & {t for t, _ in page.tags}
    attributes = [(name, value or "") for _, own in page.tags for name, value in own.items()]
    loaded = [value for name, value in attributes if name in ("src", "srcset", "action")]
    assert loaded
    assert all(value.startswith("data:image/jpeg;base64,") for value in loaded)
    assert [tag for tag, own in page.tags if "href" in own and tag != "a"] == []
    assert not re.search(r"https?:|url\(|@import", text)
    assert [name for name, _ in attributes if name.startswith("on")] == []
    (policy,) = [own["content"] for own in page.named("meta") if "http-equiv" in own]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "script-src 'sha256-" in policy


def run_in_browser(text: str, script: str, file: Path, width: int = 500) -> str:
    """Return the title of a page after a script ran on it behind its own, in headless Chromium.

    Args:
        text: the page.
        script: sets `document.title` to what it found.
        file: where the page with the script is written.
        width: of the window in pixels.
    """
    assert CHROMIUM is not None
    # The policy allows the page's own script alone.
    opened = re.sub(r"script-src '[^']*'", "script-src 'unsafe-inline'", text)
    # Where images are not laid out yet, as on a busy machine, keys go elsewhere.
    loaded = f"<script>addEventListener('load', () => {{{script}}})</script>"
    file.write_text(opened.replace("</body>", f"{loaded}</body>"), "utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]
    command += ["--no-first-run", "--disable-background-networking", "--disable-sync"]
    command += ["--disable-component-update", f"--user-data-dir={file.parent / 'profile'}"]
    command += ["--virtual-time-budget=5000"]  # milliseconds that timers may take
    command += [f"--window-size={width},900", "--dump-dom", file.as_uri()]
    run = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HOME": str(file.parent)},
    )
    found = re.search(r"<title>(.*?)</title>", run.stdout)
    assert found is not None, run.stderr
    return found.group(1)
