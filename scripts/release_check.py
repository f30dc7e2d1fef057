"""Build the wheel and the sdist, and try the wheel in empty environments, as before a release.

    python scripts/release_check.py [--python 3.10 3.12 3.13] [--out DIR] [--no-install]

It builds from a copy of the files that git knows, so that nothing else gets in, by `uv` or by the
package `build`, and checks that

- the wheel is smaller than 30 MB, has all that it must have, and nothing of the tests;
- the wheel that is built from the sdist holds the same files;
- in an empty environment of each version of Python the wheel installs, and away from the
  repository a smoke test passes: the program, the embedded checkpoint, the tokenizer.

A version of which this machine has no interpreter is skipped, and said to be. Torch comes from
where pip or uv is set up to look; on Linux its usual build takes about 6 GB for each environment,
which are removed one after another. The exit code is 0 if all that could be checked is right.

Cost: a minute to build, and for each version what the installation takes.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Sequence
from email.message import Message
from email.parser import BytesParser
from pathlib import Path

ROOT = Path(__file__).parents[1]
VERSIONS = ("3.10", "3.12", "3.13")  # the oldest, and the two that most people have
LARGEST = 30_000_000  # bytes of a wheel
NEEDED = (
    "clipkit/py.typed",
    "clipkit/assets/README.md",
    "clipkit/assets/merges.txt.gz",
    "clipkit/assets/prompts.json",
    "clipkit/assets/wordnet.txt.gz",
    "clipkit/assets/tiny/README.md",
    "clipkit/assets/tiny/config.json",
    "clipkit/assets/tiny/model.safetensors",
)
SMOKE = """
import sys
import clipkit

assert "site-packages" in clipkit.__file__, clipkit.__file__
classifier = clipkit.ImageClassifier.zero_shot("tiny", ["cat", "dog", "rocket", "cup of coffee"])
found = classifier.predict("photo.jpg").top(1)[0][0]
assert found == "cup of coffee", found
tokenizer = clipkit.Tokenizer()
text = "a photo of a cat, and 3 dogs!"
assert tokenizer.decode(tokenizer.encode(text)).replace(" ", "") == text.replace(" ", "")
assert clipkit.tokenize(["a dog"]).shape == (1, 77)
print(f"Python {sys.version.split()[0]}: the photo is a {found}")
"""


class CheckError(Exception):
    """Say what is wrong with a release."""


def main() -> int:
    args = _parse()
    with tempfile.TemporaryDirectory(prefix="clipkit-release-") as folder:
        work = Path(folder)
        try:
            wheel = build_all(work, args.out)
            describe(wheel)
            check_wheel(wheel)
            for version in [] if args.no_install else args.python:
                check_installed(wheel, version, work)
        except (CheckError, subprocess.CalledProcessError) as error:
            print(f"NOT READY: {error}", file=sys.stderr)
            return 1
    print("ready, as far as it was checked")
    return 0


def build_all(work: Path, out: Path) -> Path:
    """Build the wheel and the sdist into a folder, and check that both make the same wheel."""
    source = copy_tracked(ROOT, work / "source")
    out.mkdir(parents=True, exist_ok=True)
    wheel = build("wheel", source, out)
    sdist = build("sdist", source, out)
    print(f"built {wheel.name} and {sdist.name}")
    shutil.unpack_archive(sdist, work / "sdist", filter="data")
    (unpacked,) = (work / "sdist").iterdir()
    again = build("wheel", unpacked, work / "again")
    differing = set(names_in(wheel)) ^ set(names_in(again))
    if differing:
        raise CheckError(f"the wheel of the sdist differs in {', '.join(sorted(differing))}")
    print(f"the wheel of the sdist holds the same {len(names_in(again))} files")
    return wheel


def copy_tracked(root: Path, target: Path) -> Path:
    """Copy the files that git knows, as they are in the working tree."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True, text=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (root / name).is_file():  # it may be deleted, and not yet committed
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, target / name)
    return target


def build(kind: str, source: Path, out: Path) -> Path:
    """Build a "wheel" or an "sdist" of a source tree, and return its path."""
    command = [sys.executable, "-m", "build", f"--{kind}", "--outdir", str(out), str(source)]
    if uv := shutil.which("uv"):
        command = [uv, "build", "--quiet", f"--{kind}", "--out-dir", str(out), str(source)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    pattern = "*.whl" if kind == "wheel" else "*.tar.gz"
    return max(out.glob(pattern), key=lambda path: path.stat().st_mtime_ns)


def names_in(wheel: Path) -> list[str]:
    """Return the names of the files in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def describe(wheel: Path) -> None:
    """Print what a wheel ships, by folder."""
    sizes: Counter[str] = Counter()
    files: Counter[str] = Counter()
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            folder = info.filename.rpartition("/")[0]
            sizes[folder] += info.compress_size
            files[folder] += 1
    print(f"{wheel.stat().st_size:,} bytes in {sum(files.values())} files:")
    for folder in sorted(sizes):
        print(f"  {sizes[folder]:>12,} bytes  {files[folder]:>4} files  {folder}")


def check_wheel(wheel: Path) -> None:
    """Raise `CheckError` unless a wheel is small, whole, and names the licenses that it has."""
    size = wheel.stat().st_size
    if size >= LARGEST:
        raise CheckError(f"the wheel has {size:,} bytes, and {LARGEST:,} are the most")
    names = names_in(wheel)
    tops = {name.split("/")[0] for name in names}
    foreign = sorted(top for top in tops if top != "clipkit" and not top.endswith(".dist-info"))
    if foreign:
        raise CheckError(f"the wheel holds what is no part of the package: {', '.join(foreign)}")
    about = metadata_of(wheel)
    (info,) = (top for top in tops if top.endswith(".dist-info"))
    licenses = [f"{info}/licenses/{name}" for name in about.get_all("License-File", [])]
    if not licenses:
        raise CheckError("the wheel's metadata name no license file")
    missing = [name for name in (*NEEDED, *licenses) if name not in names]
    if missing:
        raise CheckError(f"the wheel lacks {', '.join(missing)}")
    print(f"{about['Name']} {about['Version']}, license {about['License-Expression']}")


def metadata_of(wheel: Path) -> Message:
    """Return the metadata of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (one for one in archive.namelist() if one.endswith(".dist-info/METADATA"))
        return BytesParser().parsebytes(archive.read(name))


def check_installed(wheel: Path, version: str, work: Path) -> None:
    """Install a wheel in an empty environment of a version of Python, and try it there."""
    interpreter = find_python(version)
    if interpreter is None:
        print(f"Python {version}: SKIPPED, this machine has no such interpreter")
        return
    begin = time.monotonic()
    environment = work / f"environment-{version}"
    install(interpreter, environment, wheel)
    away = work / f"away-{version}"
    away.mkdir()
    shutil.copy(ROOT / "examples" / "photos" / "coffee.jpg", away / "photo.jpg")
    scripts = environment / ("Scripts" if sys.platform == "win32" else "bin")
    release = str(metadata_of(wheel)["Version"])
    expect([scripts / "clipkit", "--version"], away, f"clipkit {release}")
    expect([scripts / "clipkit", "models"], away, "tiny")
    labels = ["--labels", "cat", "dog", "cup of coffee"]
    expect([scripts / "clipkit", "classify", "photo.jpg", *labels], away, "cup of coffee")
    expect([scripts / "python", "-c", SMOKE], away, f"Python {version}")
    seconds = time.monotonic() - begin
    print(f"Python {version}: installed, and the smoke test passed, in {seconds:.0f} s")
    shutil.rmtree(environment)


def find_python(version: str) -> Path | None:
    """Return an interpreter of a version such as "3.12", or None if there is none here."""
    name = f"python{version}"
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    found = [*pyenv.glob(f"versions/{version}.*/bin/{name}")]
    if at := shutil.which(name):
        found.append(Path(at))
    ask = "import sys; print('%d.%d' % sys.version_info[:2])"
    for path in found:
        answer = subprocess.run([path, "-c", ask], capture_output=True, text=True, check=False)
        if answer.stdout.strip() == version:  # a shim may stand for no interpreter
            return path
    return None


def install(interpreter: Path, environment: Path, wheel: Path) -> None:
    """Make an empty environment, and install a wheel there with all that it needs."""
    if uv := shutil.which("uv"):
        subprocess.run([uv, "venv", "--quiet", "-p", interpreter, environment], check=True)
        command = [uv, "pip", "install", "--quiet", "-p", environment, wheel]
    else:
        subprocess.run([interpreter, "-m", "venv", environment], check=True)
        scripts = environment / ("Scripts" if sys.platform == "win32" else "bin")
        command = [scripts / "python", "-m", "pip", "install", "--quiet", wheel]
    subprocess.run(command, check=True)


def expect(command: Sequence[str | Path], folder: Path, answer: str) -> None:
    """Raise `CheckError` unless a command in a folder ends well, and prints an answer."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    variables = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        command,
        cwd=folder,
        env=variables | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode or answer not in done.stdout:
        shown = " ".join(str(word) for word in command[:2])
        raise CheckError(f"{shown} ended with {done.returncode}: {done.stdout}{done.stderr}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", nargs="+", default=VERSIONS, metavar="VERSION")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="by default dist/")
    parser.add_argument("--no-install", action="store_true", help="build and look, no more")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
