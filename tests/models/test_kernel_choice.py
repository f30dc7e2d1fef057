"""Which of torch's libraries is the faster one is known by the processor."""

import math
import platform
from pathlib import Path

import pytest
import torch

from clipkit.models import kernels


@pytest.mark.parametrize(
    "about, expected", [("vendor_id: AuthenticAMD", True), ("vendor_id: GenuineIntel", False)]
)
def test_the_choice_follows_the_vendor(
    about: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda path: about)
    assert kernels._onednn_is_faster.__wrapped__() is expected


def test_the_choice_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", unreadable)
    monkeypatch.setattr(
        platform, "processor", lambda: "AMD64 Family 25 Model 17 Stepping 1, AuthenticAMD"
    )
    assert kernels._onednn_is_faster.__wrapped__()


@pytest.mark.parametrize(
    "capability, most",
    [("AVX2", kernels.MOST_ROWS), ("DEFAULT", kernels.MOST_ROWS), ("AVX512", math.inf)],
)
def test_the_choice_follows_the_rows(
    capability: str, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert kernels._most_rows.__wrapped__() == most


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("most", [5, math.inf])
def test_a_second_copy_is_kept_only_where_it_is_used(
    most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_most_rows", lambda: most)
    assert (kernels.pack(torch.randn(3, 4)).plain is None) is (most == math.inf)
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        assert kernels.pack(torch.randn(3, 4).bfloat16()).plain is None
