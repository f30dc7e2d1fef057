"""Start other processes of Python: one, or several that know of each other as under torchrun."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import clipkit


def start(
    arguments: list[str], variables: Mapping[str, str] | None = None, *, own_group: bool = False
) -> "subprocess.Popen[str]":
    """Start Python. What it writes to stderr can be read from the process.

    Args:
        arguments: for Python, which finds clipkit and the tests.
        variables: of its environment, besides those of this process.
        own_group: start a process group, to be signaled as a whole.
    """
    found = {"PYTHONPATH": str(Path(clipkit.__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", *arguments],
        env={**os.environ, **found, **(variables or {})},
        stderr=subprocess.PIPE,
        start_new_session=own_group,
        text=True,
    )


def rank_variables(rank: int, world: int, port: int) -> dict[str, str]:
    """Return what torchrun tells one of its processes."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    """Return the number of a port on which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def launch(world: int, arguments: list[str], code: int = 0) -> None:
    """Do what torchrun does, without its overhead: run as many processes, and wait for all.

    Args:
        world: how many.
        arguments: for Python, the same for each.
        code: with which each must end.
    """
    port = free_port()
    processes = [start(arguments, rank_variables(rank, world, port)) for rank in range(world)]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    for process, error in zip(processes, errors, strict=True):
        assert process.returncode == code, error
