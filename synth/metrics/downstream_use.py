"""Use of a filled scan: is it as sharp as the other side, are its tissues right, does it register?

A higher SSIM may go with worse use, so these stand beside the challenge's metrics where asked for.
Registration follows Nachev et al. (2008): a template is registered to the filled brain and to the
brain without a hole, and the two deformations are compared inside the hole. It needs SimpleITK,
`pip install "synth-brain[use]"`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import Any

import numpy as np
from scipy import ndimage

from synth.base.errors import SynthError
from synth.data.fill import mirror_axis, reflect
from synth.data.heads import template, tissue_shares
from synth.data.volume import Volume

SPACING_MM = 3.0  # the brains are registered at this spacing
AFFINE_STEPS, DEMONS_STEPS = 80, 60
SMOOTHING_MM = 6.0  # of the deformation


class DownstreamUse:
    """Judges answers for one known hole; what concerns the truth is computed once.

    Args:
        truth: the scan without a hole, skull-stripped, axes RAS.
        hole: (X, Y, Z) bool, where the answers are judged.
    """

    def __init__(self, truth: Volume, hole: np.ndarray) -> None:
        if importlib.util.find_spec("SimpleITK") is None:
            raise SynthError(
                "--use needs SimpleITK", hint='pip install "synth-brain[use]" brings it'
            )
        self.truth, self.hole = truth, hole
        self.image = truth.data[0]
        self.brain = self.image > self.image.min()
        axis_sum = mirror_axis(self.image, ~hole)
        other = reflect(hole, axis_sum, fill=False) & ~hole & self.brain
        self.sharpness = self._steepness(self.image, other if other.any() else hole)
        self.tissue = self._tissue(self.image)
        self.deformation = self._deformation(self.image)

    def metrics(self, answer: np.ndarray) -> dict[str, float]:
        """Return sharpness (1: as the other side), tissue error and registration error."""
        apart = self._deformation(answer) - self.deformation
        inside = ndimage.zoom(self.hole.astype(np.float32), self._zoom(), order=1) > 0.5
        distance = np.linalg.norm(apart, axis=-1)
        return {
            "sharpness": self._steepness(answer, self.hole) / self.sharpness,
            "tissue_error": float(np.abs(self._tissue(answer) - self.tissue).sum() / 2),
            "registration_mm": float(distance[inside].mean()) if inside.any() else 0.0,
        }

    def _steepness(self, image: np.ndarray, where: np.ndarray) -> float:
        """Return the mean gradient, per mm, inside a mask (its rim is left out where it can be)."""
        inner = ndimage.binary_erosion(where)
        slopes = np.gradient(image.astype(np.float64), *self.truth.spacing_mm)
        return float(np.sqrt(sum(s * s for s in slopes))[inner if inner.any() else where].mean())

    def _tissue(self, image: np.ndarray) -> np.ndarray:
        """Return the shares of the hole's three classes of intensity: in a T1 CSF, grey, white."""
        known = self.brain & ~self.hole
        whole = np.where(known, self.image, 0)
        whole[self.hole] = image[self.hole]
        shares, _ = tissue_shares(whole, self.brain | self.hole, fit=known)
        return shares[:, self.hole].mean(axis=1)

    def _zoom(self) -> tuple[float, ...]:
        return tuple(s / SPACING_MM for s in self.truth.spacing_mm)

    def _deformation(self, image: np.ndarray) -> np.ndarray:
        """Return (x, y, z, 3) in mm: where the template's brain lies, on a grid of SPACING_MM."""
        filled = np.where(self.hole, image, self.image)
        high = np.percentile(self.image[self.brain & ~self.hole], 99.5)
        return _register(ndimage.zoom(filled / high, self._zoom(), order=1).astype(np.float32))


def _register(fixed: np.ndarray) -> np.ndarray:
    """Register MNI152 to a brain: affine, then demons; returns the displacement of each voxel."""
    sitk: Any = importlib.import_module("SimpleITK")
    still, moving = (_as_itk(a) for a in (fixed, _template()))
    start = sitk.CenteredTransformInitializer(still, moving, sitk.AffineTransform(3))
    affine = sitk.ImageRegistrationMethod()
    affine.SetMetricAsCorrelation()
    affine.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, AFFINE_STEPS)
    affine.SetOptimizerScalesFromPhysicalShift()
    affine.SetInitialTransform(start, inPlace=False)
    affine.SetInterpolator(sitk.sitkLinear)
    found: Any = affine.Execute(still, moving)
    near = sitk.Resample(moving, still, found, sitk.sitkLinear, 0.0)
    near = sitk.HistogramMatching(near, still)
    demons = sitk.DiffeomorphicDemonsRegistrationFilter()
    demons.SetNumberOfIterations(DEMONS_STEPS)
    demons.SetStandardDeviations(SMOOTHING_MM / SPACING_MM)
    warp = sitk.GetArrayFromImage(demons.Execute(still, near)).transpose(2, 1, 0, 3)
    whole = sitk.TransformToDisplacementField(
        found, sitk.sitkVectorFloat64, still.GetSize(), still.GetOrigin(), still.GetSpacing()
    )
    return warp + sitk.GetArrayFromImage(whole).transpose(2, 1, 0, 3)


def _as_itk(data: np.ndarray) -> Any:
    sitk: Any = importlib.import_module("SimpleITK")
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.transpose(2, 1, 0)))
    image.SetSpacing((SPACING_MM,) * 3)
    return image


@functools.cache
def _template() -> np.ndarray:
    return ndimage.zoom(template().t1, 1 / SPACING_MM, order=1).astype(np.float32)
