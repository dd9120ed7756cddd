"""The denoiser: the shared U-Net on Haar bands, with an atlas or gates where the mode has them."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from synth.diffusion.unet import UNet
from wdm3d.config import BANDS, INPUT_SCALE, Config


def build(config: Config) -> nn.Module:
    """Build the network: (x, t) → (B, bands, …), x = cat(x_t, condition), t in timesteps."""
    if config.mode == "guided":
        return GatedUNet(config)
    return AtlasUNet(config) if config.has_atlas else UNet(config.unet())


class AtlasUNet(nn.Module):
    """A U-Net that looks up learned bands at each voxel's place in the brain.

    The last three input channels are coordinates in [-1, 1] along the brain's bounding box. An
    atlas that is only learned through convolutions of coordinates costs depth; here it is a table.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.atlas = nn.Parameter(torch.zeros(1, config.bands, *[config.atlas] * 3))
        self.unet = UNet(config.unet())

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict the clean state at timestep t (B,)."""
        places = x[:, -3:].movedim(1, -1).flip(-1)  # grid_sample counts the last axis first
        atlas = self.atlas.expand(len(x), -1, -1, -1, -1)
        looked_up = F.grid_sample(atlas, places, padding_mode="border", align_corners=True)
        return self.unet(torch.cat([x, looked_up], dim=1), t)


class GatedUNet(nn.Module):
    """A U-Net that weighs the fills it is shown, and adds what none of them has.

    At each place of the wavelet grid it answers a weight for every fill, one for each scale of
    detail: how much of the fill's difference from the base to take over. A network that has to
    learn such products from sums alone needs far more depth.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.unet = UNet(config.unet())
        self.register_buffer("scale_of_band", scale_of_band(config), persistent=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict the clean state at timestep t (B,)."""
        bands, count = self.config.bands, len(self.config.modalities)
        fills = x[:, 2 * bands : 6 * bands].unflatten(1, (4, bands))  # behind x_t and what is known
        differences = fills - fills[:, :3].mean(dim=1, keepdim=True)
        answer = self.unet(x, t)
        gates = answer[:, bands:].unflatten(1, (4, count, 3))
        weights = gates[:, :, :, self.scale_of_band].flatten(2, 3)  # (B, 4, bands, ...)
        units = INPUT_SCALE * self.config.residual_scale
        return answer[:, :bands] + (weights * differences).sum(dim=1) / units


def scale_of_band(config: Config) -> Tensor:
    """Return, for each band of one contrast, 0 the low one, 1 coarse details, 2 fine ones."""
    place = torch.arange(config.bands_each)
    coarse = config.bands_each // BANDS  # so many bands are not of the finest level
    return torch.where(place >= max(coarse, 1), 2, torch.where(place > 0, 1, 0))
