"""What a trained inpainting model is worth: quality against network calls, seams, and a page.

    python -m benchmarks.inpainting MODEL DATA --split JSON -o OUT

Every unseen case ("testing" of the split) is painted inside mask-healthy by the posterior mean and
by each sampler with several numbers of calls, and scored by the official metrics. One network
serves all rows; each case keeps its own seed, so that rows differ by the sampler alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.utils.data import default_collate

from synth.base.files import write_json
from synth.base.seeding import generator
from synth.checkpoints import checkpoint
from synth.data.split import read_split
from synth.diffusion.sampling import ddim, ddpm, dpmpp_2m, levels, noise_like, noised, with_known
from synth.diffusion.schedule import Denoiser, alpha_sigma
from synth.diffusion.wavelet import any_in_block
from synth.metrics.image import inpainting_metrics
from synth.pictures.montage import draw_montage
from wdm3d.data import InpaintingData
from wdm3d.generate import load
from wdm3d.modes import Batch, mode_of
from wdm3d.recipe import schedule_of

CALLS = (1, 2, 4, 8, 16, 20, 50)
SHOWN = ("ssim", "psnr_01", "mse")


class Study:
    """Unseen cases in batches of one shape, and a model to paint them."""

    def __init__(self, loaded: checkpoint.Checkpoint, data: InpaintingData) -> None:
        self.model, self.config = loaded.model, loaded.config
        self.mode, self.schedule = mode_of(self.config), schedule_of(self.config)
        groups: dict[tuple, list[tuple[int, dict]]] = {}
        for index in range(len(data)):
            item = data.item(index, 0)
            groups.setdefault(tuple(item["truth"].shape), []).append((index, item))
        self.batches: list[tuple[list[int], Batch]] = [
            ([i for i, _ in group], default_collate([item for _, item in group]))
            for group in groups.values()
        ]

    def paint(self, how: str, calls: int, *, seed: int = 0) -> dict[int, np.ndarray]:
        """Return case → painted box; `how` is mean or the name of a sampler."""
        found = {}
        for indices, batch in self.batches:
            sources = [generator(seed, "study", i) for i in indices]
            with torch.no_grad():
                state = self._state(how, calls, batch, sources)
                images = self.mode.image(state, batch).numpy()
            found |= dict(zip(indices, images[:, 0], strict=True))
        return found

    def _state(self, how: str, calls: int, batch: Batch, sources: list) -> Tensor:
        like = torch.zeros_like(self.mode.state(batch["known"], batch))
        denoise = self._denoiser(batch)
        if how == "mean":
            start = levels(self.schedule, 1, "uniform")[0].expand(len(like))
            draws = [denoise(noise_like(like, sources), start) for _ in range(calls)]
            return torch.stack(draws).mean(0)
        if self.config.mode == "default":
            known = self.mode.state(batch["known"], batch)
            inside = any_in_block(batch["roi"] > 0)
            denoise = with_known(denoise, known, inside, noised(known, sources))
        start = noise_like(like, sources)
        walk = levels(self.schedule, calls, "uniform" if how == "ddpm" else "logsnr")
        steps = {
            "ddpm": lambda: ddpm(denoise, start, walk, sources),
            "ddim": lambda: ddim(denoise, start, walk),
            "dpmpp_2m": lambda: dpmpp_2m(denoise, start, walk),
        }[how]()
        *_, last = steps
        return last.x

    def _denoiser(self, batch: Batch) -> Denoiser:
        def denoise(x_t: Tensor, logsnr: Tensor, cond: Tensor | None = None) -> Tensor:
            del cond
            alpha = alpha_sigma(logsnr)[0].to(x_t).view(-1, 1, 1, 1, 1)
            seen = self.mode.inputs(self.mode.confine(x_t, batch), alpha, batch)
            return self.mode.answer(self.model(seen, self.schedule.timestep(logsnr).to(x_t)), batch)

        return denoise

    def cases(
        self,
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray, tuple[float, float], np.ndarray]]:
        """Yield (index, truth, mask, intensity window, known) of each case."""
        for indices, batch in self.batches:
            for k, index in enumerate(indices):
                low, high = batch["window"][k].tolist()
                mask = batch["roi"][k, 0].numpy() > 0
                known = batch["known"][k, 0].numpy()
                yield index, batch["truth"][k, 0].numpy(), mask, (low, high), known

    def scores(self, painted: dict[int, np.ndarray]) -> dict[str, float]:
        """Mean official metrics over the cases."""
        rows = [
            inpainting_metrics(painted[i], truth, window, mask)
            for i, truth, mask, window, _ in self.cases()
        ]
        return {name: float(np.mean([row[name] for row in rows])) for name in SHOWN}


def seam(image: np.ndarray, mask: np.ndarray, known: np.ndarray) -> tuple[float, float]:
    """Mean step in intensity across the rim of the mask, and between neighbours just outside it."""
    near = ndimage.binary_dilation(mask, iterations=3) & ~mask
    across, outside = [], []
    for axis in range(3):
        a, b = (np.take(image, range(s, image.shape[axis] - 1 + s), axis) for s in (0, 1))
        in_a, in_b = (np.take(mask, range(s, mask.shape[axis] - 1 + s), axis) for s in (0, 1))
        ring_a, ring_b = (np.take(near, range(s, near.shape[axis] - 1 + s), axis) for s in (0, 1))
        brain_a, brain_b = (
            np.take(known > -0.95, range(s, known.shape[axis] - 1 + s), axis) for s in (0, 1)
        )
        step = np.abs(a - b)
        across.append(step[(in_a & brain_b & ~in_b) | (in_b & brain_a & ~in_a)])
        outside.append(step[ring_a & ring_b & brain_a & brain_b])
    return float(np.concatenate(across).mean()), float(np.concatenate(outside).mean())


def page(study: Study, path: Path, ids: list[str], *, calls: int = 16, draws: int = 4) -> Path:
    """Draw six cases: voided, mean, two samples, spread of the samples, truth."""
    mean = study.paint("mean", 1)
    samples = [study.paint("dpmpp_2m", calls, seed=s) for s in range(draws)]
    rows, labels = [], []
    for index, truth, mask, _, known in list(study.cases())[:6]:
        z = int(mask.sum(axis=(0, 1)).argmax())
        spread = np.where(mask, np.std([s[index] for s in samples], axis=0, ddof=1), 0)
        shown = [known, mean[index], samples[0][index], samples[1][index], spread * 3 - 1, truth]
        rows.append([np.rot90(v[:, :, z]) for v in shown])
        labels.append(ids[index])
    columns = ["voided", "mean", "sample", "sample", "sd × 3", "truth"]
    return draw_montage(rows, path, row_labels=labels, column_labels=columns, window=(-1, 1.1))


def main() -> None:
    """Print the table, write OUT/study.json and OUT/page.png."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--ancestral", type=int, nargs="*", default=[50, 1000])
    options = parser.parse_args()
    loaded = load(options.model)
    cases = [e.case for e in read_split(options.split, options.data).testing]
    study = Study(loaded, InpaintingData(cases, loaded.config, fixed=True))
    runs = [("mean", 1), ("mean", 4)]
    runs += [(how, n) for how in ("ddim", "dpmpp_2m") for n in CALLS]
    runs += [("ddpm", n) for n in (*CALLS[:-1], *options.ancestral)]
    table = []
    print(
        f"{'sampler':<10}{'calls':>6}{'SSIM':>9}{'PSNR_01':>9}{'MSE':>9}{'seam':>7}{'seconds':>9}"
    )
    for how, calls in runs:
        started = time.monotonic()
        painted = study.paint(how, calls)
        scores = study.scores(painted)
        steps = np.array([seam(painted[i], m, k) for i, _, m, _, k in study.cases()]).mean(0)
        row = scores | {"seam": steps[0] / steps[1], "seconds": time.monotonic() - started}
        table.append({"sampler": how, "calls": calls} | row)
        print(f"{how:<10}{calls:>6}{row['ssim']:>9.4f}{row['psnr_01']:>9.2f}{row['mse']:>9.5f}"
              f"{row['seam']:>7.2f}{row['seconds']:>9.1f}", flush=True)  # fmt: skip
    truth = {i: t for i, t, _, _, _ in study.cases()}
    steps = np.array([seam(truth[i], m, k) for i, _, m, _, k in study.cases()]).mean(0)
    print(f"the truth's own step across the rim: {steps[0] / steps[1]:.2f} of the tissue around")
    write_json(options.out / "study.json", {"cases": [c.id for c in cases], "rows": table})
    print(page(study, options.out / "page.png", [c.id for c in cases]))


if __name__ == "__main__":
    main()
