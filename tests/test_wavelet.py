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

FIXTURES = Path(__file__).parent / "golden" / "public"
KEYS = ["".join(key) for key in product("ad", repeat=3)]
# Short and long, even and odd half-lengths, symmetric, biorthogonal; all of them run in slow.
SOME = ["haar", "db2", "db3", "db4", "sym5", "coif2", "bior2.2", "rbio3.1", "db20"]

TRUNCATED = {"dmey"}  # 62 of infinitely many taps: pywt itself does not come back closer


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def by_pywt(x: torch.Tensor, wavelet: str) -> torch.Tensor:
    bands = pywt.dwtn(x.numpy(), wavelet, mode="periodization", axes=(2, 3, 4))
    stacked = np.stack([bands[key] for key in KEYS], axis=2)  # (B, C, 8, …)
    return torch.from_numpy(stacked).flatten(1, 2)


def test_bands_are_those_the_published_networks_were_trained_on():
    file = FIXTURES / "wdm_haar3d.json"
    golden = json.loads(file.read_text())
    generator = torch.Generator().manual_seed(golden["input"]["seed"])
    y = dwt3(torch.randn(golden["input"]["shape"], generator=generator))
    assert tuple(golden["bands"]) == BANDS
    for i, values in enumerate(golden["bands"].values()):
        torch.testing.assert_close(y[:, i].flatten(), torch.tensor(values), atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(16, 12, 20), (4, 2, 6)])  # the second is shorter than filters
@pytest.mark.parametrize("wavelet", SOME)
def test_equals_pywt_and_comes_back(wavelet, shape):
    x = random(2, 3, *shape)
    y = dwt3(x, wavelet)
    torch.testing.assert_close(y, by_pywt(x, wavelet), atol=1e-10, rtol=0)  # float64
    back = idwt3(y, wavelet)
    bands = dict(zip(KEYS, y.unflatten(1, (-1, 8)).numpy().swapaxes(0, 2), strict=True))
    theirs = pywt.idwtn(bands, wavelet, mode="periodization", axes=(2, 3, 4)).swapaxes(0, 1)
    torch.testing.assert_close(back, torch.from_numpy(theirs.copy()), atol=1e-10, rtol=0)
    torch.testing.assert_close(back, x, atol=1e-6, rtol=0)
    single = dwt3(x.float(), wavelet)
    torch.testing.assert_close(single, y.float(), atol=5e-6, rtol=1e-5)  # sums of 40³ terms
    torch.testing.assert_close(idwt3(single, wavelet), back.float(), atol=5e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("wavelet", pywt.wavelist(kind="discrete"))
def test_every_wavelet_equals_pywt(wavelet):
    x = random(1, 2, 8, 4, 6)
    y = dwt3(x, wavelet)
    torch.testing.assert_close(y, by_pywt(x, wavelet), atol=1e-6, rtol=0)
    if wavelet not in TRUNCATED:
        torch.testing.assert_close(idwt3(y, wavelet), x, atol=1e-6, rtol=0)


@settings(max_examples=25, deadline=None)
@given(
    half=st.tuples(*[st.integers(1, 9)] * 3),
    batch=st.integers(1, 3),
    channels=st.integers(1, 4),
    seed=st.integers(0, 2**16),
)
def test_haar_is_orthonormal_for_any_even_shape(half, batch, channels, seed):
    x = random(batch, channels, *[2 * n for n in half], seed=seed)
    y = dwt3(x)
    torch.testing.assert_close(y, by_pywt(x, "haar"), atol=1e-12, rtol=0)
    torch.testing.assert_close(y.square().sum(), x.square().sum())
    torch.testing.assert_close(idwt3(y), x, atol=1e-12, rtol=0)


def test_slabs_do_not_change_the_answer(monkeypatch):
    x = random(2, 2, 14, 8, 6)
    whole, back = dwt3(x), idwt3(random(1, 8, 7, 4, 6))
    for size in (1, 8 * 4 * 3 * 8 * 3):  # one plane at a time; three, which do not divide seven
        monkeypatch.setattr("synth.diffusion.wavelet.SLAB_BYTES", size)
        assert torch.equal(dwt3(x), whole)
        assert torch.equal(idwt3(random(1, 8, 7, 4, 6)), back)


def test_channels_stay_together():
    x = random(1, 3, 4, 4, 4)
    for channel in range(3):
        alone = dwt3(x[:, channel : channel + 1])
        assert torch.equal(dwt3(x).unflatten(1, (3, 8))[:, channel], alone)


@pytest.mark.parametrize("wavelet", ["haar", "db3"])
def test_gradients(wavelet):
    x = random(1, 1, 4, 2, 6).requires_grad_()
    y = random(1, 8, 2, 1, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: dwt3(v, wavelet), x)
    assert torch.autograd.gradcheck(lambda v: idwt3(v, wavelet), y)
    if wavelet == "haar":
        assert torch.autograd.gradgradcheck(dwt3, x)


@pytest.mark.parametrize("wavelet", ["haar", "db2"])
def test_autocast_does_not_blur_the_volume(wavelet):
    x = random(1, 1, 8, 8, 8).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(idwt3(dwt3(x, wavelet), wavelet), x, atol=1e-5, rtol=0)


def test_memory_format_does_not_matter():
    x = random(2, 3, 4, 6, 8)
    last = x.to(memory_format=torch.channels_last_3d)
    assert torch.equal(dwt3(last), dwt3(x))
    assert torch.equal(idwt3(dwt3(last).to(memory_format=torch.channels_last_3d)), idwt3(dwt3(x)))


def test_a_block_is_inside_where_any_voxel_is():
    mask = torch.zeros(1, 1, 8, 8, 8, dtype=torch.bool)
    mask[..., 3:6, 2, 7] = True
    x = random(1, 1, 8, 8, 8)
    changed = (dwt3(x) != dwt3(torch.where(mask, x + 1, x))).any(1, keepdim=True)
    assert torch.equal(any_in_block(mask), changed)


@pytest.mark.parametrize("axis", range(3))
def test_an_odd_size_is_named(axis):
    shape = [4, 6, 8]
    shape[axis] += 1
    with pytest.raises(SynthError, match=f"axis {'XYZ'[axis]} has size {shape[axis]}"):
        dwt3(torch.zeros(1, 1, *shape))


def test_mistakes_are_explained():
    with pytest.raises(SynthError, match="unknown wavelet 'daub'"):
        dwt3(torch.zeros(1, 1, 4, 4, 4), "daub")
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
