"""What the wavelet space spares, as counts: they do not depend on the machine."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.ddpm_lora import GIB, LAYOUTS, SPACES, activation_bytes, flops, kept_bytes, work_of


def test_wavelet_space_spares_four_fifths_of_the_arithmetic() -> None:
    pixel, wavelet = (flops(config) for config in SPACES.values())
    assert pixel == pytest.approx(21.258e12, rel=1e-4)  # counted on Med-DDPM's own code
    assert pixel / wavelet >= 4


def test_wavelet_space_spares_five_sixths_of_the_memory() -> None:
    pixel, wavelet = (activation_bytes(config) for config in SPACES.values())
    assert pixel / GIB == pytest.approx(64.9, abs=0.1)  # counted on Med-DDPM's own code
    assert pixel / wavelet >= 6
    small = activation_bytes(SPACES["wavelet"], blocks=True, half=True)
    assert small < 4e9


def test_kept_bytes_are_those_of_the_formula() -> None:
    layer = nn.Sequential(nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 8))
    x = torch.randn(5, 8)
    # the input of each Linear, and the Sigmoid's answer, which is one of them
    assert kept_bytes(lambda: layer(x), layer) == 2 * 5 * 8 * 4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_timed(layout: str) -> None:
    work_of("wavelet", layout, "call", 16, "cpu")()
