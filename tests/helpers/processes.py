"""Start several processes of one program, as torchrun does."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import clipkit


def launch(world: int, arguments: list[str], code: int = 0) -> None:
    """What torchrun does, without its overhead: as many processes, told of each other by the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", *arguments],
            env=os.environ
            | {"PYTHONPATH": str(Path(clipkit.__file__).parents[1])}
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    for process in processes:
        error = process.communicate(timeout=300)[1]
        assert process.returncode == code, error
