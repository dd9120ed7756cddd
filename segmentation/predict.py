"""Region probabilities of a whole scan, by a sliding window of the training patch."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor, nn

from segmentation.augment import AIR
from segmentation.config import Config
from synth.data.labels import REGIONS

FLIPS = tuple(axes for n in range(4) for axes in combinations((-3, -2, -1), n))  # all 8


def probabilities(
    model: nn.Module,
    image: Tensor,
    config: Config,
    *,
    tta: bool = False,
    overlap: float = 0.5,
    device: str | torch.device | None = None,
) -> Tensor:  # (R, x, y, z) float32, on the image's device
    """Return the probability of every region (WT, TC, ET) at every voxel.

    Windows are computed one at a time. Their answers are averaged with a Gaussian weight, because a
    network knows least at the edge of what it sees (Isensee et al. 2021).

    Args:
        model: gives one tensor of logits in eval mode; it is left in the mode it came in.
        image: (C, x, y, z), prepared as in training.
        config: its patch is the window.
        tta: average the probabilities of the eight mirror images of each window.
        overlap: share of a window that its neighbour sees, too.
        device: where the model is; default where its first parameter is.
    """
    from monai.inferers.utils import sliding_window_inference
    from monai.networks.utils import eval_mode

    place = device or next((p.device for p in model.parameters()), image.device)
    flips = FLIPS if tta else FLIPS[:1]

    def answer(window: Tensor) -> Tensor:  # (1, C, x, y, z)
        mean = torch.zeros(1, len(REGIONS), *window.shape[2:], device=window.device)
        for axes in flips:
            mean += torch.sigmoid(model(window.flip(axes)).float()).flip(axes) / len(flips)
        return mean

    with eval_mode(model):
        found = sliding_window_inference(
            image[None], config.patch, 1, answer, overlap, mode="gaussian", cval=AIR,
            sw_device=place, device=place,
        )  # fmt: skip
    assert isinstance(found, Tensor)
    return found[0].to(image.device)
