"""A contact sheet holds itself, escapes every name, links to every file, and obeys the keyboard."""

import base64
import gc
import io
import json
import math
import os
import subprocess
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest
from PIL import Image

import clipkit.search.sheet as sheet
from clipkit.errors import ConfigError, OutputError
from clipkit.search import Duplicates, Result, Results, write_sheet
from clipkit.search.sheet_images import Shown
from clipkit.search.sheet_paths import common_folder, link_to, short_name
from tests.helpers.pages import CHROMIUM, Page, check_loads_nothing, run_in_browser

STRANGE = [
    "<script>alert('x')</script>",
    'a&b "c" #1 50% ?.jpg',
    "\u732b \u0432 \u0441\u0430\u0434\u0443.jpg",
    "new\nline.jpg",
    "\u202egpj.exe",
    "a:b;c@d+e,f=g.jpg",
    os.fsdecode(b"caf\xe9.jpg"),
]
POSIX = pytest.mark.skipif(os.name != "posix", reason="Windows has no such names")


def results_of(paths: Sequence[str | Path]) -> Results:
    """Return results whose z-scores go down from 5."""
    return Results([Result(str(path), 0.3 - i / 100, 5.0 - i) for i, path in enumerate(paths)])


def paint(path: Path, size: tuple[int, int] = (60, 40), color: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, "PNG" if path.suffix != ".jpg" else "JPEG")
    return path


def write(found: Results | list[Duplicates], folder: Path, **options: int) -> tuple[str, Page]:
    """Return the text of a sheet, and what it holds."""
    file = folder / "sheet.html"
    write_sheet(found, file, title="2 * dog - <indoor>", **options)
    text = file.read_text("utf-8")
    return text, Page(text)


def copies_on(page: Page) -> list[Image.Image]:
    uris = [own["src"] or "" for own in page.named("img")]
    contents = [base64.b64decode(uri.removeprefix("data:image/jpeg;base64,")) for uri in uris]
    return [Image.open(io.BytesIO(content)) for content in contents]


def test_a_sheet_loads_nothing_and_is_light_and_dark(tmp_path: Path) -> None:
    text, page = write(results_of([paint(tmp_path / "1.jpg")]), tmp_path)
    check_loads_nothing(text, page)
    assert "prefers-color-scheme: dark" in text
    assert len(page.named("script")) == 1


def test_it_says_what_was_found(tmp_path: Path) -> None:
    paths = [paint(tmp_path / "in" / name) for name in ("1.jpg", "2.jpg")]
    _, page = write(results_of(paths), tmp_path, total=2000)
    whole = "".join(page.texts)
    assert page.texts.count("2 * dog - <indoor>") == 2  # on the tab and above the images
    assert f"2 of 2,000 images, the best first, in {tmp_path / 'in'}. z is" in whole
    for figures in ("z 5.0cosine 0.300", "z 4.0cosine 0.290"):
        assert figures in whole
    titles = [own["title"] for own in page.named("a")]
    assert titles == [str(path) for path in paths]
    assert "1.jpg" in page.texts
    labels = [own["aria-label"] for own in page.named("button")]
    assert labels == ["Copy path of 1.jpg", "Copy path of 2.jpg"]


def test_one_image_without_a_spread_has_no_z(tmp_path: Path) -> None:
    found = Results([Result(str(paint(tmp_path / "1.jpg")), 0.5, math.nan)])
    text, page = write(found, tmp_path)
    assert "z \u2013cosine 0.500" in "".join(page.texts)
    assert "1 image, the best first" in "".join(page.texts)
    assert "nan" not in text


@pytest.mark.parametrize(
    ("found", "said"),
    [(Results([]), "Nothing was found among 9 images."), ([], "No two images look alike among 9")],
)
def test_nothing_found_is_said(
    found: Results | list[Duplicates], said: str, tmp_path: Path
) -> None:
    _, page = write(found, tmp_path, total=9)
    assert page.open == []
    assert said in "".join(page.texts)
    assert page.named("kbd") == []


@POSIX
def test_strange_names_are_escaped_and_their_links_lead_to_the_files(tmp_path: Path) -> None:
    paths = [str(paint(tmp_path / name / "1.jpg")) for name in STRANGE]
    text, page = write(results_of(paths), tmp_path)
    assert page.open == []
    assert len(page.named("script")) == 1
    assert "alert('x')" not in text
    assert "\u202e" not in text
    assert any("\\u202egpj.exe" in (own["title"] or "") for own in page.named("a"))
    links = [own["href"] or "" for own in page.named("a")]
    assert all(link.isascii() and not set(link) & set(" #?:<>\"'\n") for link in links)
    found = [os.path.join(os.fsencode(tmp_path), unquote_to_bytes(link)) for link in links]
    assert found == [os.fsencode(path) for path in paths]


@POSIX
def test_links_out_of_the_folder_are_absolute(tmp_path: Path) -> None:
    image = paint(tmp_path / "photos" / "50% #1.jpg")
    (tmp_path / "pages").mkdir()
    _, page = write(results_of([image]), tmp_path / "pages")
    (link,) = [own["href"] or "" for own in page.named("a")]
    assert link == image.as_uri()
    assert link.endswith("/photos/50%25%20%231.jpg")
    assert link.startswith("file:///")


def test_links_of_relative_paths_are_seen_from_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint(tmp_path / "photos" / "1.jpg")
    monkeypatch.chdir(tmp_path)
    assert link_to("photos/1.jpg", ".") == "photos/1.jpg"
    assert link_to("photos/1.jpg", "photos") == "1.jpg"
    assert link_to("photos/1.jpg", "pages") == (tmp_path / "photos" / "1.jpg").as_uri()
    assert link_to("1.jpg", "") == "1.jpg"


def test_links_are_real_and_open_beside_the_page(tmp_path: Path) -> None:
    _, page = write(results_of([paint(tmp_path / "1.jpg")]), tmp_path)
    (link,) = page.named("a")
    assert link["target"] == "_blank"
    assert link["rel"] == "noopener"
    assert [own["type"] for own in page.named("button")] == ["button"]
    assert [own["role"] for own in page.named("p") if "role" in own] == ["status"]


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8junk")
    whole = paint(tmp_path / "whole.jpg", (400, 400)).read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "folder.jpg").mkdir()
    names = ("gone.jpg", "broken.jpg", "half.jpg", "folder.jpg", "whole.jpg")
    _, page = write(results_of([tmp_path / name for name in names]), tmp_path)
    assert len(page.named("a")) == 5
    assert len(page.named("img")) == 1
    said = [part for part in page.texts if part.startswith(("it is", "cannot"))]
    assert len(said) == 4
    assert said[0] == "it is not there any more"
    assert "cannot identify image file" in said[1]
    assert "truncated" in said[2]
    assert "folder" in said[3]
    assert all(str(tmp_path) not in part for part in said)


def test_thumbnails_are_upright_on_white_and_of_the_side_that_is_asked_for(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (900, 600), "red").save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGBA", (50, 20), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    found = results_of([tmp_path / "turned.jpg", tmp_path / "clear.png"])
    _, page = write(found, tmp_path, thumbnail=90)
    turned, clear = copies_on(page)
    assert turned.size == (60, 90)
    assert clear.size == (50, 20)
    assert clear.getpixel((25, 10)) == (255, 255, 255)
    _, page = write(found, tmp_path)
    assert copies_on(page)[0].size == (171, 256)


def test_groups_say_what_helps_to_choose(tmp_path: Path) -> None:
    large = paint(tmp_path / "large.png", (600, 400))
    small = paint(tmp_path / "small.png", (300, 200))
    one, other = (paint(tmp_path / name) for name in ("one.png", "other.png"))
    groups = [
        Duplicates([str(large), str(small), str(tmp_path / "gone.png")], 0.9712),
        Duplicates([str(one), str(other)], 1.0),
    ]
    text, page = write(groups, tmp_path, total=50)
    whole = "".join(page.texts)
    assert "2 groups of images that look alike, 5 of 50 images, in" in whole
    assert "3 images, cosine 0.971" in page.texts
    assert "2 images, the same file byte for byte" in page.texts
    assert f"600 \u00d7 400{large.stat().st_size / 1000:.1f} kBlargest" in whole
    assert "300 \u00d7 200" in whole
    assert text.count(">largest<") == 1
    heads = [own["id"] for own in page.named("h2")]
    assert [own["aria-labelledby"] for own in page.named("section")] == heads


def test_of_images_of_one_size_the_largest_file_is_marked(tmp_path: Path) -> None:
    image = Image.effect_noise((90, 60), 60)
    image.save(tmp_path / "1.jpg", quality=95)
    image.save(tmp_path / "2.jpg", quality=30)
    group = Duplicates([str(tmp_path / "1.jpg"), str(tmp_path / "2.jpg")], 0.99)
    text, page = write([group], tmp_path)
    assert text.count(">largest<") == 1
    assert text.index(">largest<") < text.index("2.jpg</span>")
    assert "2 images, cosine 0.990" in page.texts


def test_files_of_one_size_need_not_be_copies(tmp_path: Path) -> None:
    paint(tmp_path / "1.bmp", color="red").write_bytes(b"BM")
    for name, color in (("1.bmp", "red"), ("2.bmp", "blue")):
        Image.new("RGB", (20, 20), color).save(tmp_path / name)
    _, page = write([Duplicates([str(tmp_path / f"{i}.bmp") for i in (1, 2)], 0.97)], tmp_path)
    assert "2 images, cosine 0.970" in page.texts


def test_the_same_images_give_the_same_bytes(tmp_path: Path) -> None:
    found = results_of([paint(tmp_path / "1.jpg")])
    first, _ = write(found, tmp_path)
    second, _ = write(found, tmp_path)
    assert first == second


def test_one_image_is_held_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[weakref.ref[Shown]] = []
    most = 0

    def look_at(path: str, side: int) -> Shown:
        nonlocal most
        gc.collect()
        most = max(most, sum(one() is not None for one in held))
        shown = Shown(path, "data:image/jpeg;base64,AAAA")
        held.append(weakref.ref(shown))
        return shown

    monkeypatch.setattr(sheet, "look_at", look_at)
    write(results_of([f"{i}.jpg" for i in range(50)]), tmp_path)
    assert len(held) == 50
    assert most <= 1  # the one before is still named


@pytest.mark.parametrize("found", [[Result("a.jpg", 0.3, 3.0)], "a.jpg", None, ["a.jpg"]])
def test_what_is_no_result_is_refused(found: list[Duplicates], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a sheet shows the Results of a search, or the list"):
        write_sheet(found, tmp_path / "sheet.html", title="x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("side", [0, -5, 15, 2049, "large"])
def test_impossible_thumbnails_are_refused(side: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="thumbnail must be 16 to 2048 pixels, not"):
        write_sheet(Results([]), tmp_path / "sheet.html", title="x", thumbnail=side)


def test_titles_are_texts(tmp_path: Path) -> None:
    title: str = None  # pyright: ignore[reportAssignmentType]
    with pytest.raises(ConfigError, match="title must be a text, not None"):
        write_sheet(Results([]), tmp_path / "sheet.html", title=title)


def test_a_sheet_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sheet.html").write_text("before")

    def fail(path: str, side: int) -> Shown:
        raise KeyboardInterrupt("stop")

    monkeypatch.setattr(sheet, "look_at", fail)
    with pytest.raises(KeyboardInterrupt, match="stop"):
        write(results_of(["1.jpg"]), tmp_path)
    assert (tmp_path / "sheet.html").read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(OutputError, match="a folder of that name is in the way"):
        write_sheet(Results([]), tmp_path, title="x")


def test_writing_needs_no_torch(tmp_path: Path) -> None:
    path = str(paint(tmp_path / "1.jpg"))
    program = (
        "import sys\n"
        "from clipkit.search import Duplicates, Result, Results, write_sheet\n"
        f"write_sheet(Results([Result({path!r}, 0.3, 3.0)]), {path + '.html'!r}, title='x')\n"
        f"write_sheet([Duplicates([{path!r}, {path!r}], 1.0)], {path + '.html'!r}, title='x')\n"
        "print('torch' in sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("False\n", "")


@pytest.mark.parametrize(
    ("path", "common", "shown"),
    [
        ("a/b/1.jpg", "", "a/b/1.jpg"),
        ("a/b/1.jpg", "a", "b/1.jpg"),
        ("a/b/1.jpg", "a/b", "1.jpg"),
        ("a/b\n/1.jpg", "a", "b\\n/1.jpg"),
        ("/".join(["folder"] * 9) + "/1.jpg", "", "\u2026/" + "folder/" * 5 + "1.jpg"),
        ("a/" + "n" * 43 + ".jpg", "", "\u2026/" + "n" * 43 + ".jpg"),
        ("n" * 44 + ".jpg", "", "n" * 44 + ".jpg"),
        ("a/" + "n" * 50 + "123.jpg", "", "n" * 31 + "\u2026" + "n" * 9 + "123.jpg"),
    ],
)
def test_paths_are_shortened_from_the_left(path: str, common: str, shown: str) -> None:
    assert short_name(path, common) == shown


@pytest.mark.parametrize(
    ("paths", "common"),
    [
        ([], ""),
        (["1.jpg", "a/2.jpg"], ""),
        (["a/1.jpg", "a/b/2.jpg"], "a"),
        (["/a/1.jpg", "/a/b/2.jpg"], "/a"),
        (["/a/1.jpg", "b/2.jpg"], ""),
    ],
)
@POSIX
def test_the_folder_of_all_is_found(paths: list[str], common: str) -> None:
    assert common_folder(paths) == common


# What a user does with the keyboard, and where the focus is after each key.
KEYS = """
const press = key => {
  const event = new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true });
  return document.activeElement.dispatchEvent(event);
};
const every = [...document.querySelectorAll(".images a")];
const at = () => every.indexOf(document.activeElement);
let copied = "";
Object.defineProperty(navigator, "clipboard", {
  value: { writeText: async text => { copied = text; } },
});
const results = { at: [], tabs: [], columns: 0 };
const top0 = every[0].getBoundingClientRect().top;
results.columns = every.filter(one => one.getBoundingClientRect().top === top0).length;
for (const key of KEYS) { press(key); results.at.push(at()); }
results.tabs = every.map(one => one.tabIndex);
results.ring = getComputedStyle(every[at()].closest("li")).outlineStyle;
results.enter = press("Enter");
press("c");
press("Escape");
results.left = [at(), document.activeElement.tagName, press("ArrowDown"), at()];
document.querySelectorAll(".images button")[2].focus();
press("ArrowRight");
results.afterButton = at();
const found = every.map(one => [one.querySelector("img").naturalWidth > 0, one.href]);
results.fits = document.documentElement.scrollWidth <= innerWidth;
setTimeout(() => {
  results.copied = copied;
  results.said = document.querySelector("[role=status]").textContent;
  document.title = JSON.stringify(results);
});
"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_a_browser_obeys_the_keyboard(tmp_path: Path) -> None:
    names = [f"#{i} ?%\u732b.jpg" for i in range(11)]
    paths = [str(paint(tmp_path / name)) for name in names]
    groups = [Duplicates(paths[:5], 0.97), Duplicates(paths[5:], 0.96)]
    text, _ = write(groups, tmp_path)
    keys = ["ArrowDown", "ArrowRight", "ArrowDown", "ArrowLeft", "End", "ArrowRight", "ArrowUp"]
    keys += ["Home", "ArrowLeft", "ArrowUp", "ArrowRight", "ArrowDown", "ArrowDown"]
    script = KEYS.replace("KEYS", json.dumps(keys))
    found = json.loads(run_in_browser(text, script, tmp_path / "keys.html", width=760))
    assert found["columns"] == 3
    # Groups of 3 + 2 and 3 + 3. The first key only enters; the last goes from group to group.
    assert found["at"] == [0, 1, 4, 3, 10, 10, 7, 0, 0, 0, 1, 4, 6]
    assert found["tabs"] == [0 if i == 6 else -1 for i in range(11)]
    assert found["ring"] == "solid"
    assert found["enter"]  # the link's own
    assert found["copied"] == paths[6]
    assert found["said"] == f"Copied {paths[6]}"
    assert found["left"] == [-1, "MAIN", True, -1]
    assert found["afterButton"] == 3
    assert found["fits"]


PHONE = "document.title = document.documentElement.scrollWidth <= innerWidth"


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_long_names_fit_a_narrow_window(tmp_path: Path) -> None:
    paths = [paint(tmp_path / f"{'long' * 40}{i}.jpg") for i in range(3)]
    file = tmp_path / "sheet.html"
    write_sheet(results_of(paths), file, title="word" * 50)
    text = file.read_text("utf-8")
    assert run_in_browser(text, PHONE, tmp_path / "phone.html", width=500) == "true"
