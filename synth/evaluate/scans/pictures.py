"""Pictures of generated scans beside real ones, and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from synth.base.files import atomic_path
from synth.data.case import MODALITIES
from synth.evaluate.scans.regions import TUMOUR, column
from synth.evaluate.scans.scan_case import Scans
from synth.evaluate.scans.texture import LEVELS
from synth.pictures.montage import BACKGROUND as DARK
from synth.pictures.montage import INK, PLANES, montage, square_around, three_planes

ROWS = 6
"""Real and made rows each."""
COLOURS = {"generated": "#3ec8f5", "real": "#f5d90a"}

Panels = list[np.ndarray]


def panels_of(scans: Scans) -> Panels:
    """Cut three planes of every contrast through the middle of the tumour, or of the brain."""
    tumour = scans.classes > 0 if scans.classes is not None else np.zeros_like(scans.brain)
    middle = tumour if tumour.any() else scans.brain
    frames = [square_around(plane) for plane in three_planes(scans.brain, mask=middle)]
    return [
        plane[frame]
        for image in scans.image
        for plane, frame in zip(three_planes(image, mask=middle), frames, strict=True)
    ]


def page(sets: Mapping[str, Sequence[tuple[str, Panels]]], path: Path, *, seed: int = 0) -> Path:
    """Draw the sets' rows in mixed order: which are made is to be seen, not to be expected."""
    rows = [(kind, *row) for kind, own in sets.items() for row in own]
    order = np.random.default_rng(seed).permutation(len(rows))
    mixed = [rows[i] for i in order]
    return montage(
        [panels for _, _, panels in mixed],
        path,
        row_labels=[f"{kind}\n{name}" for kind, name, _ in mixed],
        column_labels=[f"{m} {plane}" for m in MODALITIES for plane in PLANES],
        window=(0, 1.2),
    )


def spectra(sets: Mapping[str, np.ndarray], path: Path) -> Path:
    """Plot the energy of Haar levels by contrast: mean ± sd over the cases of each set.

    Args:
        sets: (cases, 4, levels, 7) ln energies.
        path: PNG to write.
    """
    scale = np.arange(1, LEVELS + 1)

    def draw(axes, contrast: int) -> None:
        for name, energies in sets.items():
            values = np.log10(np.e) * energies[:, contrast].mean(axis=-1)  # (cases, levels)
            values = values[np.isfinite(values).all(axis=1)]
            if not len(values):
                continue
            mean, sd = values.mean(axis=0), values.std(axis=0)
            axes.plot(scale, mean, marker="o", color=COLOURS[name], label=name)
            axes.fill_between(scale, mean - sd, mean + sd, color=COLOURS[name], alpha=0.2)
        axes.set_xticks(scale, [str(2**s) for s in scale])
        axes.set_xlabel("detail, voxels")

    return _four(draw, path, "log10 energy / brain variance")


def intensities(sets: Mapping[str, Sequence[Mapping[str, float]]], path: Path) -> Path:
    """Plot every case's mean brightness of the tumour's regions, in sd of the healthy brain."""
    places = np.arange(len(TUMOUR))

    def draw(axes, contrast: int) -> None:
        rng = np.random.default_rng(0)
        for number, (name, rows) in enumerate(sets.items()):
            for place, region in zip(places, TUMOUR, strict=True):
                values = column(rows, f"{region}_{MODALITIES[contrast]}_mean")
                across = place + 0.3 * (number - 0.5) + rng.uniform(-0.08, 0.08, len(values))
                label = name if place == 0 else None
                axes.scatter(across, values, s=9, color=COLOURS[name], alpha=0.7, label=label)
        axes.axhline(0, color=INK, linewidth=0.6)
        axes.set_xticks(places, list(TUMOUR))

    return _four(draw, path, "brighter than brain, sd")


def _four(draw, path: Path, unit: str) -> Path:
    """Make a row of four plots, one a contrast."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3), dpi=120, facecolor=DARK, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for number, axes in enumerate(figure.subplots(1, len(MODALITIES))):
        axes.set_facecolor(DARK)
        axes.tick_params(colors=INK, labelsize=7)
        draw(axes, number)
        axes.set_title(MODALITIES[number], color=INK, fontsize=9)
        axes.xaxis.label.set_color(INK)
        for spine in axes.spines.values():
            spine.set_color(INK)
        if number == 0:
            axes.set_ylabel(unit, color=INK, fontsize=8)
            axes.legend(fontsize=7, facecolor=DARK, labelcolor=INK, edgecolor=INK)
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        canvas.print_png(stream)
    return path
