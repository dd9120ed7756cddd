"""The wavelet transform against pywt, the published band order, and its own inverse."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import pywt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synth.base.errors import SynthError
from synth.diffusion.wavelet import BANDS, any_in_block, dwt3, idwt3
from tests.conftest import golden

KEYS = ["".join(key) for key in product("ad", repeat=3)]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def test_bands_are_those_the_published_networks_were_trained_on():
    file = golden("wdm_haar3d")
    generator = torch.Generator().manual_seed(file["input"]["seed"])
    y = dwt3(torch.randn(file["input"]["shape"], generator=generator))
    assert tuple(file["bands"]) == BANDS
    for i, values in enumerate(file["bands"].values()):
        torch.testing.assert_close(y[:, i].flatten(), torch.tensor(values), atol=1e-6, rtol=0)


@settings(max_examples=25, deadline=None)
@given(
    half=st.tuples(*[st.integers(1, 9)] * 3),
    batch=st.integers(1, 3),
    channels=st.integers(1, 4),
    seed=st.integers(0, 2**16),
)
def test_equals_pywt_and_comes_back(half, batch, channels, seed):
    x = random(batch, channels, *[2 * n for n in half], seed=seed)
    y = dwt3(x)
    bands = pywt.dwtn(x.numpy(), "haar", axes=(2, 3, 4))
    stacked = np.stack([bands[key] for key in KEYS], axis=2)  # (B, C, 8, …)
    torch.testing.assert_close(y, torch.from_numpy(stacked).flatten(1, 2), atol=1e-12, rtol=0)
    torch.testing.assert_close(y.square().sum(), x.square().sum())
    torch.testing.assert_close(idwt3(y), x, atol=1e-12, rtol=0)
    torch.testing.assert_close(idwt3(dwt3(x.float())), x.float(), atol=5e-6, rtol=0)


def test_slabs_and_memory_format_do_not_change_the_answer(monkeypatch):
    x, bands = random(2, 2, 14, 8, 6), random(1, 8, 7, 4, 6)
    whole, back = dwt3(x), idwt3(bands)
    for size in (1, 8 * 4 * 3 * 8 * 3):  # one plane at a time; three, which do not divide seven
        monkeypatch.setattr("synth.diffusion.wavelet.SLAB_BYTES", size)
        assert torch.equal(dwt3(x), whole)
        assert torch.equal(idwt3(bands), back)
    assert torch.equal(dwt3(x.to(memory_format=torch.channels_last_3d)), whole)
    assert torch.equal(idwt3(bands.to(memory_format=torch.channels_last_3d)), back)


def test_gradients():
    x, y = random(1, 1, 4, 2, 6).requires_grad_(), random(1, 8, 2, 1, 3).requires_grad_()
    assert torch.autograd.gradcheck(dwt3, x)
    assert torch.autograd.gradcheck(idwt3, y)
    assert torch.autograd.gradgradcheck(dwt3, x)


def test_autocast_does_not_blur_the_volume():
    x = random(1, 1, 8, 8, 8).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(idwt3(dwt3(x)), x, atol=1e-5, rtol=0)


def test_a_block_is_inside_where_any_voxel_is():
    mask = torch.zeros(1, 1, 8, 8, 8, dtype=torch.bool)
    mask[..., 3:6, 2, 7] = True
    x = random(1, 1, 8, 8, 8)
    changed = (dwt3(x) != dwt3(torch.where(mask, x + 1, x))).any(1, keepdim=True)
    assert torch.equal(any_in_block(mask), changed)


def test_mistakes_are_explained():
    for axis, name in enumerate("XYZ"):
        shape = [4, 6, 8]
        shape[axis] += 1
        with pytest.raises(SynthError, match=f"axis {name} has size {shape[axis]}"):
            dwt3(torch.zeros(1, 1, *shape))
    with pytest.raises(SynthError, match="idwt3 wants"):
        idwt3(torch.zeros(1, 7, 4, 4, 4))


@pytest.mark.slow
def test_faster_than_ptwt():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.wavelet", "--json"],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True,
    )  # fmt: skip
    figures = json.loads(done.stdout)
    assert figures["ptwt_ms"] / figures["synth_ms"] >= 3
    assert figures["synth_peak_copies"] <= 8  # four times two copies
