"""The condition of the network: necrosis, oedema, enhancing tumour, brain and tissue per voxel.

A *class map* is (X, Y, Z) uint8: 0 background, 1 NCR, 2 ED, 3 ET, 4 brain outside the tumour, the
numbers of Med-DDPM's own files. *Planes* are its one-hot (B, 4, X, Y, Z) float form, and may
hold probabilities: hidden labels are "any of the four", a hidden brain is "any of the five". In
wavelet space three more follow, the shares of CSF, grey and white in the brain outside the tumour.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ddpm_lora.config import CLASSES, TISSUES
from synth.base.config import did_you_mean
from synth.base.errors import SynthError
from synth.data.labels import SCHEMES, to_classes

BRAIN = 4
NAMES = ("NCR", "ED", "ET", "brain")
MEDDPM = "meddpm"  # BraTS 2023's numbers, and 4 for the brain
LABEL_SCHEMES = (*SCHEMES, MEDDPM)
MOST_OUTSIDE = 0.5  # share of a tumour that may stick out of the brain before the grids are doubted
HEAVIEST = 20.0  # times the mean, about: a lone voxel of a region must not be the whole loss


def class_map(
    labels: np.ndarray,
    scheme: str,
    brain: np.ndarray | None = None,
    *,
    name: str = "label map",
) -> np.ndarray:  # (X, Y, Z) uint8
    """Return the class map of a label map (X, Y, Z) in any scheme.

    NCR is the core outside ET (in PED: NET and CC), ED the whole tumour outside the core; a
    resection cavity (2024) counts as brain. The brain is `brain`, or the label map's own where the
    scheme is "meddpm"; without either the map is refused. Tumour outside the brain is kept.
    """
    if scheme == MEDDPM:
        head = (labels > 0) & (labels == BRAIN).any()
        labels, scheme = np.where(labels == BRAIN, 0, labels), "brats2023"
        brain = head if brain is None else brain | head
    elif scheme not in SCHEMES:
        hint = did_you_mean(scheme, LABEL_SCHEMES)
        raise SynthError(f"unknown label scheme '{scheme}'", hint=hint)
    classes = to_classes(labels, scheme, name=name)
    if brain is None or not brain.any():
        raise SynthError(
            f"{name} does not say where the brain is",
            hint="give a brain mask or the scans it was drawn on; or, where label 4 is the brain "
            "as in Med-DDPM's files, the scheme meddpm",
        )
    whole = classes > 0
    if whole.any() and (whole & ~brain).sum() > MOST_OUTSIDE * whole.sum():
        raise SynthError(
            f"{name}: most of the tumour lies outside the brain",
            hint="are the label map and the brain mask on the same grid?",
        )
    classes[brain & ~whole] = BRAIN
    return classes


def planes_of(classes: Tensor, tissue: Tensor | None = None) -> Tensor:
    """One-hot planes of class maps (B, X, Y, Z) → (B, 4, X, Y, Z); background is all zeros.

    With shares of tissue (B, 3, X, Y, Z) these follow.
    """
    hot = F.one_hot(classes.long(), CLASSES + 1)[..., 1:].movedim(-1, 1).float()
    return hot if tissue is None else torch.cat([hot, tissue.float()], dim=1)


def head_in(planes: Tensor) -> Tensor:
    """Return where brain and tumour are, (B, 1, X, Y, Z) bool."""
    return planes[:, :CLASSES].sum(1, keepdim=True) > 0


def any_tissue(brain: Tensor) -> Tensor:
    """Return the planes of tissue that nobody knows: each alike in the brain (B, 1, X, Y, Z)."""
    return brain.float().expand(-1, TISSUES, -1, -1, -1) / TISSUES


def without_tissue(planes: Tensor) -> Tensor:
    """Hide the tissue, if the planes have it."""
    if planes.shape[1] == CLASSES:
        return planes
    labels = planes[:, :CLASSES]
    return torch.cat([labels, any_tissue(labels[:, BRAIN - 1 : BRAIN])], dim=1)


def unlabelled(planes: Tensor) -> Tensor:
    """Hide labels and tissue: every voxel of the head is any of the four classes alike."""
    head = planes[:, :CLASSES].sum(1, keepdim=True)
    labels = (head / CLASSES).expand(-1, CLASSES, -1, -1, -1)
    return labels if planes.shape[1] == CLASSES else torch.cat([labels, any_tissue(head)], dim=1)


def unconditioned(planes: Tensor) -> Tensor:
    """Hide everything: every voxel is any of the four classes, or background, alike."""
    hidden = torch.full_like(planes, 1 / (TISSUES + 1))
    hidden[:, :CLASSES] = 1 / (CLASSES + 1)
    return hidden


def dropped(planes: Tensor, label_drop: float, brain_drop: float, tissue_drop: float) -> Tensor:
    """Hide the labels of a share of the items, everything of another, the tissue of a third."""
    draw, other = torch.rand(2, len(planes)).to(planes.device).view(2, -1, 1, 1, 1, 1)
    planes = torch.where(other < tissue_drop, without_tissue(planes), planes)
    planes = torch.where(draw < label_drop + brain_drop, unlabelled(planes), planes)
    return torch.where(draw < brain_drop, unconditioned(planes), planes)


def voxel_weights(classes: Tensor, balance: float, *, background: bool = True) -> Tensor:
    """Weights ~ n^-balance for the voxels of a region of n; (B, 1, X, Y, Z), of mean 1 each item.

    0 counts voxels alike, 1 gives every region that is there the same say. Without `background`
    that has none.
    """
    hot = F.one_hot(classes.long(), CLASSES + 1).flatten(1, 3)  # (B, N, 5)
    sizes = hot.sum(1).clamp(min=1).float()  # (B, 5)
    share = sizes**-balance
    share[:, 0] *= background
    weights = share.gather(1, classes.long().flatten(1))  # (B, N)
    weights = (weights / weights.mean(1, keepdim=True)).clamp(max=HEAVIEST)
    weights = weights / weights.mean(1, keepdim=True)
    return weights.view(len(classes), 1, *classes.shape[1:])
