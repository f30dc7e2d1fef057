"""Mark tests that need a process without other tests' libraries."""

import os

import pytest

# OpenVINO stays in a process with threads and an allocator of its own. A process that had run its
# tests among those of many other libraries once ended without a word; nobody could repeat it. By
# itself it is tested in a process of its own: `pytest -n 0 FILE`.
ALONE = pytest.mark.skipif(
    "PYTEST_XDIST_WORKER" in os.environ,
    reason="runs in a process of its own: pytest -n 0 FILE",
)
