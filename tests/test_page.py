"""Pages have one look, escape what they are given, and let a browser load and run nothing else."""

import base64
import hashlib
import re

from clipkit.page import STYLE, as_html, frame
from tests.helpers.pages import Page

EVIL = "</title><script>alert('x')</script> & \u202egpj.exe \udce9"


def policy_of(page: Page) -> str:
    (policy,) = [own["content"] for own in page.named("meta") if "http-equiv" in own]
    return policy or ""


def test_a_policy_allows_the_own_script_alone() -> None:
    page = "".join(frame("Cats", script="document.title = 'a';\n"))
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = policy_of(Page(page))
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert policy.endswith(f"script-src 'sha256-{digest}'")


def test_a_page_without_script_runs_none() -> None:
    page = Page("".join(frame("Cats")))
    assert page.named("script") == []
    assert policy_of(page).endswith("script-src 'none'")


def test_a_page_is_whole_and_light_and_dark() -> None:
    page = Page("".join(frame("Cats", style="b { color: red; }\n")))
    assert page.open == []
    assert "Cats" in page.texts
    assert any(part.endswith("b { color: red; }\n") and STYLE in part for part in page.texts)
    assert "prefers-color-scheme: dark" in STYLE


def test_titles_are_escaped() -> None:
    page = Page("".join(frame(EVIL)))
    assert page.open == []
    assert page.named("script") == []
    assert "</title><script>alert('x')</script> & \\u202egpj.exe \\udce9" in page.texts


def test_texts_are_escaped_for_attributes_too() -> None:
    assert as_html("<a href=\"x\" title='y'>&") == (
        "&lt;a href=&quot;x&quot; title=&#x27;y&#x27;&gt;&amp;"
    )
