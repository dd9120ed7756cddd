"""Overlap of a segmentation with its reference: per region and per lesion.

BraTS has scored lesions in two ways that cannot be compared (`surface.py` has the distances):

- `"2023"` (also 2024): reference lesions that a dilation joins are one; every predicted component
  that touches a dilated lesion belongs to it. Missed and false lesions enter the means as Dice 0
  and HD95 374 mm. Lesions of up to 50 mm³ (on its 1 mm grid, voxels) are ignored, false ones of
  any size are not.
- `"2025"`: plain components, matched one to one. The means run over *matched* lesions only, so
  read them beside tp, fp, fn and f1.

A region that both masks leave empty is perfect in 2023 and nan in 2025, which drops it from a
mean: report how many cases a mean is over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from synth.base.errors import SynthError
from synth.metrics.surface import Convention, check_pair, crop_to_union, surface_distances

WORST_HD95_MM: dict[Convention, float] = {"2023": 374.0, "2025": 373.0}
"""What a lesion without a counterpart costs: the diagonal of the atlas grid, rounded by each."""

# The 2025 evaluation judges whole regions by the first, and lesions by the second.
TOLERANCES_MM = (0.5, 1.0)
LESION_TOLERANCE_MM = TOLERANCES_MM[1]

NEIGHBOURS_18 = ndimage.generate_binary_structure(3, 2)
NEIGHBOURS_26 = ndimage.generate_binary_structure(3, 3)


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """One row of the table: a reference lesion, found or missed, or a false one."""

    kind: str
    """`matched`, `missed`, `false` or `ignored`."""
    voxels: int
    """Size of the reference lesion; of the predicted one if it is false."""
    dice: float
    hd95: float
    """mm; inf where there is no distance."""
    nsd: float
    """At 1 mm."""


@dataclass(frozen=True, kw_only=True)
class LesionTable:
    """All lesions of a region, and the means the challenge reports."""

    lesions: tuple[Lesion, ...]
    dice: float
    hd95: float
    """mm; never inf: what has no distance costs `WORST_HD95_MM`."""
    nsd: float

    def count(self, kind: str) -> int:
        """How many lesions are `matched`, `missed`, `false` or `ignored`."""
        return sum(lesion.kind == kind for lesion in self.lesions)

    def detection(self) -> dict[str, float]:
        """Return tp, fp, fn, and f1, precision, recall; nan where there is nothing to count."""
        tp, fp, fn = (self.count(kind) for kind in ("matched", "false", "missed"))
        return {
            "tp": tp,
            "fp": fp,
            "fn": fn,
            "f1": _ratio(2 * tp, 2 * tp + fp + fn),
            "precision": _ratio(tp, tp + fp),
            "recall": _ratio(tp, tp + fn),
        }


def dice(
    pred: np.ndarray, ref: np.ndarray, *, both_empty: Literal["nan", "perfect"] = "nan"
) -> float:
    """Return 2 |P ∩ R| / (|P| + |R|); nan (or 1) if both are empty."""
    check_pair(pred, ref)
    pred, ref = np.asarray(pred, bool), np.asarray(ref, bool)
    total = int(pred.sum()) + int(ref.sum())
    if not total:
        return {"nan": np.nan, "perfect": 1.0}[both_empty]
    return 2 * int((pred & ref).sum()) / total


def lesionwise_2023(
    pred: np.ndarray,
    ref: np.ndarray,
    spacing_mm: Sequence[float],
    *,
    dilations: int = 3,
    ignore_up_to_mm3: float = 50,
) -> LesionTable:
    """Score lesions by the rules of 2023 and 2024.

    Defaults are those of GLI, SSA and PED; meningioma and metastases dilate once, and metastases
    ignore lesions of up to 2 mm³. A dilation is a voxel wide, whatever the spacing.
    """
    check_pair(pred, ref, spacing_mm)
    pred, ref = crop_to_union(np.asarray(pred, bool), np.asarray(ref, bool))
    # Room for the dilation, which would otherwise stop at the crop.
    pred, ref = np.pad(pred, dilations), np.pad(ref, dilations)
    components, n_components = ndimage.label(pred, NEIGHBOURS_26)
    joined, n_lesions = ndimage.label(_dilate(ref, dilations), NEIGHBOURS_26)
    voxel_mm3 = float(np.prod(spacing_mm))
    lesions, claimed = [], set()
    for index in range(1, n_lesions + 1):
        lesion = ref & (joined == index)
        touching = np.unique(components[_dilate(lesion, dilations)])
        touching = touching[touching > 0]
        claimed.update(touching.tolist())
        counterpart = np.isin(components, touching)
        kind = "matched" if touching.size else "missed"
        # An oblique affine gives 0.9999998 mm: 50 voxels of it are still 50.
        if round(lesion.sum() * voxel_mm3, 3) <= ignore_up_to_mm3:
            kind = "ignored"
        lesions.append(_compare(counterpart, lesion, spacing_mm, "2023", kind))
    sizes = np.bincount(components.ravel(), minlength=n_components + 1)
    lesions += [_false(sizes[i]) for i in range(1, n_components + 1) if i not in claimed]
    scored = [lesion for lesion in lesions if lesion.kind != "ignored"]
    return _table(lesions, scored, "2023", empty=(1.0, 0.0, 1.0))


def lesionwise_2025(pred: np.ndarray, ref: np.ndarray, spacing_mm: Sequence[float]) -> LesionTable:
    """Score lesions by the rules of 2025: one to one, the pairing with the highest total Dice."""
    check_pair(pred, ref, spacing_mm)
    pred, ref = crop_to_union(np.asarray(pred, bool), np.asarray(ref, bool))
    pred_parts, n_pred = ndimage.label(pred, NEIGHBOURS_26)
    ref_parts, n_ref = ndimage.label(ref, NEIGHBOURS_26)
    shared = np.zeros((n_ref + 1, n_pred + 1), np.int64)
    np.add.at(shared, (ref_parts.ravel(), pred_parts.ravel()), 1)
    ref_sizes, pred_sizes = shared.sum(1)[1:], shared.sum(0)[1:]
    scores = 2 * shared[1:, 1:] / (ref_sizes[:, None] + pred_sizes)  # (ref lesions, predicted)
    # A pair that shares no voxel costs slightly more than one that hardly does: never preferred.
    costs = np.where(scores > 0, 1 - scores, 1 + 1e-6)
    pairs = [(r, p) for r, p in zip(*linear_sum_assignment(costs), strict=True) if scores[r, p] > 0]
    matched = [
        _compare(pred_parts == p + 1, ref_parts == r + 1, spacing_mm, "2025", "matched")
        for r, p in pairs
    ]
    found, used = {r for r, _ in pairs}, {p for _, p in pairs}
    lesions = matched + [
        Lesion(kind="missed", voxels=int(ref_sizes[r]), dice=0.0, hd95=np.inf, nsd=0.0)
        for r in range(n_ref)
        if r not in found
    ]
    lesions += [_false(pred_sizes[p]) for p in range(n_pred) if p not in used]
    undefined = (np.nan, np.nan, np.nan)
    nothing_matched = (0.0, WORST_HD95_MM["2025"], 0.0) if lesions else undefined
    return _table(lesions, matched, "2025", empty=nothing_matched)


def evaluate_regions(
    pred_labels: np.ndarray,
    ref_labels: np.ndarray,
    regions: Mapping[str, tuple[int, ...]],
    spacing_mm: Sequence[float],
    convention: Convention,
    rules: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, dict[str, float]]:
    """Score every region, a union of labels, e.g. {"wt": (1, 2, 3), "tc": (1, 3), "et": (3,)}.

    Returns region → number. Whole-region numbers are `dice`, `hd95`, `nsd_0.5mm`, `nsd_1mm`; means
    over lesions `lesion_dice`, `lesion_hd95`, `lesion_nsd_1mm`; then tp, fp, fn, f1, precision,
    recall. `rules` are the keyword arguments of `lesionwise_2023` where GLI's do not hold.
    HD95 is never inf: a region found in one mask only costs `WORST_HD95_MM`, and in 2025 so does
    a pair of masks that share no voxel. A label that no region knows is refused: it is most
    often another coding (BraTS 2021 wrote 4 for what is 3 now).
    """
    check_pair(pred_labels, ref_labels, spacing_mm)
    pred_labels, ref_labels = crop_to_union(np.asarray(pred_labels), np.asarray(ref_labels))
    known = {0, *(label for labels in regions.values() for label in labels)}
    for name, labels in (("prediction", pred_labels), ("reference", ref_labels)):
        odd = sorted(set(np.unique(labels).tolist()) - known)
        if odd:
            raise SynthError(
                f"the {name} holds labels {odd} that are in no region",
                hint=f"map labels to {sorted(known)} first",
            )
    return {
        name: _evaluate(np.isin(pred_labels, labels), np.isin(ref_labels, labels), spacing_mm,
                        convention, rules)
        for name, labels in regions.items()
    }  # fmt: skip


def _evaluate(
    pred: np.ndarray,
    ref: np.ndarray,
    spacing_mm: Sequence[float],
    convention: Convention,
    rules: Mapping[str, Any],
) -> dict[str, float]:
    both_empty: Literal["nan", "perfect"] = "perfect" if convention == "2023" else "nan"
    if convention == "2023":
        table = lesionwise_2023(pred, ref, spacing_mm, **rules)
    else:
        table = lesionwise_2025(pred, ref, spacing_mm)
    distances = surface_distances(pred, ref, spacing_mm, convention)
    overlap = dice(pred, ref, both_empty=both_empty)
    apart = convention == "2025" and overlap == 0  # there, no common voxel means no distance
    if distances is None or apart:
        worst = WORST_HD95_MM[convention]
        # Both empty: perfect or nan; one empty or apart: the worst there is.
        far, near = (worst, [0.0, 0.0]) if overlap == 0 else (1 - overlap, [overlap] * 2)
    else:
        far = distances.hd95(convention)
        near = [distances.nsd(mm, convention) for mm in TOLERANCES_MM]
    return {
        "dice": overlap,
        "hd95": far,
        "nsd_0.5mm": near[0],
        "nsd_1mm": near[1],
        "lesion_dice": table.dice,
        "lesion_hd95": table.hd95,
        "lesion_nsd_1mm": table.nsd,
        **table.detection(),
    }


def _dilate(mask: np.ndarray, iterations: int) -> np.ndarray:
    # scipy takes 0 iterations for "until nothing changes".
    return ndimage.binary_dilation(mask, NEIGHBOURS_18, iterations) if iterations else mask


def _compare(
    pred: np.ndarray,
    ref: np.ndarray,
    spacing_mm: Sequence[float],
    convention: Convention,
    kind: str,
) -> Lesion:
    distances = surface_distances(pred, ref, spacing_mm, convention)
    return Lesion(
        kind=kind,
        voxels=int(ref.sum()),
        dice=dice(pred, ref),
        hd95=distances.hd95(convention) if distances else np.inf,
        nsd=distances.nsd(LESION_TOLERANCE_MM, convention) if distances else 0.0,
    )


def _false(voxels: int) -> Lesion:
    return Lesion(kind="false", voxels=int(voxels), dice=0.0, hd95=np.inf, nsd=0.0)


def _table(
    lesions: Iterable[Lesion],
    scored: Sequence[Lesion],
    convention: Convention,
    empty: tuple[float, float, float],
) -> LesionTable:
    means = empty
    if scored:
        rows = np.array([(lesion.dice, lesion.hd95, lesion.nsd) for lesion in scored])
        rows[np.isinf(rows)] = WORST_HD95_MM[convention]
        means = tuple(float(mean) for mean in rows.mean(axis=0))
    return LesionTable(lesions=tuple(lesions), dice=means[0], hd95=means[1], nsd=means[2])


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else np.nan
