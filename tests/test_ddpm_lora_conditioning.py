"""Labels of every scheme become the same four planes; what is hidden is said to be hidden."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ddpm_lora.conditioning import (
    class_map,
    dropped,
    head_in,
    planes_of,
    unconditioned,
    unlabelled,
    voxel_weights,
    without_tissue,
)
from synth.base.errors import SynthError

NCR, ED, ET, BRAIN = 1, 2, 3, 4


def row(*values: int) -> np.ndarray:
    return np.array(values, np.int16).reshape(1, 1, -1)


@pytest.mark.parametrize(
    ("scheme", "labels", "classes"),
    [
        ("brats2021", (0, 0, 1, 2, 4), (0, BRAIN, NCR, ED, ET)),
        ("brats2023", (0, 0, 1, 2, 3), (0, BRAIN, NCR, ED, ET)),
        ("brats2024", (0, 4, 1, 2, 3), (0, BRAIN, NCR, ED, ET)),  # a cavity is brain
        ("ped2024", (0, 0, 2, 3, 4, 1), (0, BRAIN, NCR, NCR, ED, ET)),
    ],
)
def test_every_scheme_says_the_same(scheme: str, labels: tuple, classes: tuple) -> None:
    brain = row(0, *[1] * (len(labels) - 1)) > 0
    assert class_map(row(*labels), scheme, brain).ravel().tolist() == list(classes)


def test_med_ddpm_label_maps_carry_their_brain() -> None:
    labels = row(0, 4, 1, 2, 3)
    assert class_map(labels, "meddpm").ravel().tolist() == [0, BRAIN, NCR, ED, ET]
    wider = class_map(labels, "meddpm", row(1, 1, 1, 1, 1) > 0)
    assert wider.ravel().tolist() == [BRAIN, BRAIN, NCR, ED, ET]


def test_without_a_brain_the_map_is_refused_with_the_way_to_mend_it() -> None:
    with pytest.raises(SynthError, match="where the brain is") as refused:
        class_map(row(0, 1, 2), "brats2023", name="a.nii.gz")
    assert "meddpm" in (refused.value.hint or "")
    with pytest.raises(SynthError, match="where the brain is"):
        class_map(row(0, 1, 2), "meddpm")
    with pytest.raises(SynthError, match="outside the brain"):
        class_map(row(0, 1, 2, 0), "brats2023", row(1, 0, 0, 1) > 0)
    with pytest.raises(SynthError, match="label 4 is outside the scheme"):
        class_map(row(0, 4), "brats2023", row(1, 1) > 0)
    with pytest.raises(SynthError, match="unknown label scheme 'brats23'"):
        class_map(row(0, 1), "brats23", row(1, 1) > 0)


def test_a_brain_without_tumour_is_a_healthy_brain() -> None:
    assert class_map(row(0, 0), "brats2023", row(0, 1) > 0).ravel().tolist() == [0, BRAIN]


def test_planes_are_disjoint_and_hidden_ones_are_probabilities() -> None:
    classes = torch.tensor([[[[0, 1, 2, 3, 4]]]], dtype=torch.uint8)
    planes = planes_of(classes)
    assert torch.equal(planes[0, :, 0, 0, 1:], torch.eye(4))
    assert not planes[..., 0].any()
    hidden = unlabelled(planes)
    assert torch.equal(hidden.sum(1), planes.sum(1))  # the head stays where it is
    assert torch.equal(hidden[0, :, 0, 0, 3], torch.full((4,), 0.25))
    torch.testing.assert_close(unconditioned(planes), torch.full_like(planes, 0.2))


def test_shares_of_hidden_items() -> None:
    torch.manual_seed(0)
    planes = planes_of(torch.ones(8000, 1, 1, 1))
    found = dropped(planes, 0.1, 0.05, 0.5)[:, 0, 0, 0, 0]
    values, counts = found.unique(return_counts=True)
    assert torch.allclose(values, torch.tensor([0.2, 0.25, 1.0]))
    # three standard deviations of a binomial of 8000
    assert counts.tolist() == pytest.approx([400, 800, 6800], abs=100)
    assert torch.equal(dropped(planes, 0, 0, 0), planes)


def test_shares_of_hidden_tissue() -> None:
    """White matter that is hidden may be any tissue; without labels, or a brain, it is, too."""
    torch.manual_seed(0)
    white = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1, 1).expand(8000, -1, -1, -1, -1)
    planes = planes_of(torch.full((8000, 1, 1, 1), BRAIN), white)
    found = dropped(planes, 0.1, 0.05, 0.3)[:, -1, 0, 0, 0]
    values, counts = found.unique(return_counts=True)
    assert torch.allclose(values, torch.tensor([0.25, 1 / 3, 1.0]))
    assert counts.tolist() == pytest.approx([400, 800 + 0.3 * 6800, 0.7 * 6800], abs=130)
    assert torch.equal(dropped(planes, 0, 0, 0), planes)
    assert torch.equal(head_in(dropped(planes, 0.5, 0, 0.5)), head_in(planes))
    assert torch.equal(without_tissue(planes)[:, :4], planes[:, :4])
    tumour = planes_of(torch.full((1, 1, 1, 1), ET), torch.zeros(1, 3, 1, 1, 1))
    assert torch.equal(without_tissue(tumour), tumour)  # it has none


def test_weights_give_regions_their_say() -> None:
    classes = torch.zeros(2, 10, 10, 10, dtype=torch.uint8)
    classes[:, :5], classes[:, :2, :5], classes[0, 0, 0, :9] = BRAIN, ED, ET
    assert torch.equal(voxel_weights(classes, 0), torch.ones(2, 1, 10, 10, 10))
    even = voxel_weights(classes, 1.0)
    torch.testing.assert_close(even.mean((1, 2, 3, 4)), torch.ones(2))
    says = [float(even[1, 0][classes[1] == n].sum()) for n in (0, ED, BRAIN)]
    assert says == pytest.approx([1000 / 3] * 3)
    half = voxel_weights(classes, 0.5)[1, 0]
    ratio = half[classes[1] == ED][0] / half[classes[1] == 0][0]
    assert float(ratio) == pytest.approx((500 / 100) ** 0.5)
    without = voxel_weights(classes, 0.5, background=False)
    torch.testing.assert_close(without.mean((1, 2, 3, 4)), torch.ones(2))
    assert (without[:, 0][classes == 0] == 0).all()
    assert float(without[1, 0][classes[1] == ED][0] / without[1, 0][classes[1] == BRAIN][0]) > 1
    lone = torch.zeros(1, 20, 20, 20, dtype=torch.uint8)
    lone[0, 0, 0, 0] = ET
    assert 15 < float(voxel_weights(lone, 1.0).max()) < 41  # not the 4000 that balance asks for
