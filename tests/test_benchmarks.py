"""The benchmarks compare like with like, and count what the published figures count."""

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.metrics import FILLS, make_case
from benchmarks.networks import (
    CONTESTS,
    GIB,
    SPACES,
    activation_bytes,
    case_rows,
    disagreement,
    flops,
    kept_bytes,
    settings,
    table,
    work_of,
)
from benchmarks.plain_unet import PlainUNet, pair, plain_name
from benchmarks.wavelet import RIVALS
from synth.diffusion.unet import UNet
from synth.diffusion.unet_config import UNetConfig
from wdm3d.config import PUBLISHED

TINY = UNetConfig(in_channels=3, out_channels=2, width=8, multipliers=(1, 2, 3), groups=4)


def test_transcription_answers_like_our_network():
    networks = pair(TINY)
    inputs = (torch.randn(2, 3, 8, 8, 8), torch.tensor([3.0, 700.0]))
    # float32 rounding of some forty layers
    assert disagreement(list(networks.values()), inputs) < 1e-5
    with torch.no_grad():
        networks["plain"].middle[0].conv_a.weight.mul_(1.01)
    assert disagreement(list(networks.values()), inputs) > 1e-5


def test_every_tensor_of_the_published_network_has_one_place_in_the_transcription():
    with torch.device("meta"):
        ours, plain = UNet(PUBLISHED.unet()), PlainUNet(PUBLISHED.unet())
    renamed = {plain_name(name): v.shape for name, v in ours.state_dict().items()}
    assert renamed == {name: v.shape for name, v in plain.state_dict().items()}
    assert len(renamed) == 438  # tensors of the public checkpoint


def test_case_of_the_published_setting_takes_42_petaflop_and_fast_a_thousandth():
    published, *ours = settings()
    assert published.flops() == pytest.approx(8.464e12, abs=5e8)  # counted on the public code
    total = published.flops() * published.calls
    fast = [setting for setting in ours if setting.name.startswith("fast")]
    assert len(fast) == 2
    assert all(total / (s.flops() * s.calls) >= 1000 for s in fast)
    rows = case_rows()
    assert rows[1][:3] == ["published", "128³", "5000"]
    assert rows[1][4:] == ["42.3182", "1"]


def test_table_ends_every_column_at_one_place():
    lines = table([["name", "a", "bb"], ["x", "100", "2"]]).splitlines()
    assert lines == ["name    a  bb", "x     100   2"]


@pytest.mark.parametrize("name", RIVALS)
def test_rival_wavelets_come_back_to_the_volume(name):
    x = torch.randn(1, 1, 8, 8, 8)
    torch.testing.assert_close(RIVALS[name](x), x, atol=1e-5, rtol=0)  # float32 rounding


@pytest.mark.parametrize("seed", range(len(FILLS)))
def test_metrics_case_differs_from_the_truth_in_the_hole(seed):
    fill, truth, voided, mask = make_case((24, 24, 24), seed)
    np.testing.assert_array_equal(voided, np.where(mask, 0, truth))
    assert mask.any()
    brain = mask & (truth > 0)  # a hole may reach past the brain
    assert brain.sum() > 0.5 * mask.sum()
    assert (fill[brain] != truth[brain]).mean() > 0.9


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


@pytest.mark.parametrize("rival", CONTESTS["ddpm_lora"].rivals)
def test_every_layout_is_timed(rival: str) -> None:
    contest = CONTESTS["ddpm_lora"]
    network, inputs = contest.build(rival, "16"), contest.inputs(rival, "16")
    for layout in contest.layouts:
        work_of(network, inputs, layout, "call", "cpu")()
