"""Pictures of a comparison: intervals of all endpoints, scores case by case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from synth.base.errors import SynthError
from synth.base.files import atomic_path
from synth.evaluate.comparison_endpoints import Contrast, Pairs
from synth.evaluate.segmentation_scores import METRICS
from synth.metrics import statistics
from synth.pictures.slices import BACKGROUND, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BETTER, WORSE, NEITHER, FAINT = "#5bd174", "#ff6369", "#a8a8b0", "#3a3a42"
PANEL_INCHES = 2.6
LINE_ALPHA = 0.55


def forest(found: Sequence[Contrast], path: Path, *, title: str = "") -> Path:
    """Draw mean difference and interval of each contrast: a panel a metric, a line a region.

    Colour says which arm is better where the interval excludes zero; the marker is filled where
    the (Holm-adjusted, if it was) signed-rank p is below 5 %.
    """
    drawn = [c for c in found if np.isfinite(c.mean)]
    if not drawn:
        raise SynthError("nothing to draw", hint="no endpoint has a pair of numbers")
    names = {(c.endpoint.convention, c.endpoint.metric): None for c in drawn}
    lines = list(dict.fromkeys(c.endpoint.region for c in drawn))
    width = PANEL_INCHES * len(names) + 0.7
    figure = _figure(width, 0.42 * len(lines) + 1.5)
    panels = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    for axes, (convention, metric) in zip(panels, names, strict=True):
        _style(axes)
        axes.axvline(0, color=INK, linewidth=0.8)
        for one in drawn:
            if (one.endpoint.convention, one.endpoint.metric) == (convention, metric):
                _interval(axes, one, lines.index(one.endpoint.region))
        heading, _, higher = METRICS[metric]
        way = "right is better" if higher else "left is better"
        axes.set_title(f"{heading} ({convention})", color=INK, fontsize=9)
        axes.set_xlabel(f"difference, {way}", color=INK, fontsize=7.5)
        axes.locator_params(axis="x", nbins=5)
        axes.margins(x=0.12)
    panels[0].set_yticks(range(len(lines)), lines)
    panels[0].set_ylim(len(lines) - 0.5, -0.5)
    first = drawn[0]
    figure.suptitle(
        title or f"{first.treated} − {first.control}: mean over cases and 95 % interval; filled: "
        "p < 0.05 after Holm",
        color=INK, fontsize=9.5,
    )  # fmt: skip
    return _write(figure, path)


def paired_lines(
    found: Mapping[str, Pairs],
    path: Path,
    *,
    control: str,
    treated: str,
    higher_is_better: bool = True,
    title: str = "",
) -> Path:
    """Draw a line a case from the control's score to the treated arm's: a panel an endpoint.

    Green lines are cases the treatment helped, red ones those it harmed; the pale line is the mean.
    """
    drawn = {name: pairs for name, pairs in found.items() if pairs.cases}
    if not drawn:
        raise SynthError("nothing to draw", hint="no case has the number in both arms")
    figure = _figure(PANEL_INCHES * len(drawn) + 0.5, 3.8)
    panels = figure.subplots(1, len(drawn), squeeze=False, sharey=True)[0]
    for axes, (name, pairs) in zip(panels, drawn.items(), strict=True):
        _style(axes)
        gain = np.round(pairs.treated - pairs.control, statistics.SAME) * (
            1 if higher_is_better else -1
        )
        for a, b, g in zip(pairs.control, pairs.treated, gain, strict=True):
            colour = BETTER if g > 0 else WORSE if g < 0 else NEITHER
            axes.plot([0, 1], [a, b], color=colour, alpha=LINE_ALPHA, linewidth=0.9, marker="o",
                      markersize=2)  # fmt: skip
        means = [pairs.control.mean(), pairs.treated.mean()]
        axes.plot([0, 1], means, color="white", linewidth=2.6, marker="o", markersize=6)
        axes.set_xticks([0, 1], [control, treated])
        axes.set_xlim(-0.25, 1.25)
        axes.set_title(
            f"{name}\n{(gain > 0).sum()} better, {(gain == 0).sum()} equal, "
            f"{(gain < 0).sum()} worse",
            color=INK, fontsize=9,
        )  # fmt: skip
    if title:
        figure.suptitle(title, color=INK, fontsize=9.5)
    return _write(figure, path)


def _interval(axes: Axes, found: Contrast, line: int) -> None:
    low, high = found.mean_interval
    side = 0 if not np.isfinite(low) or low <= 0 <= high else np.sign(found.mean)
    side *= 1 if METRICS[found.endpoint.metric][2] else -1
    colour = {1: BETTER, -1: WORSE, 0: NEITHER}[int(side)]
    if np.isfinite(low):
        axes.plot([low, high], [line, line], color=colour, linewidth=1.8, solid_capstyle="butt")
    p = found.p_value if np.isnan(found.p_holm) else found.p_holm
    axes.plot(
        found.mean, line, marker="o", markersize=6, color=colour,
        markerfacecolor=colour if p < statistics.ALPHA else BACKGROUND,
    )  # fmt: skip


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=130, facecolor=BACKGROUND, layout="constrained")


def _style(axes: Axes) -> None:
    axes.set_facecolor(BACKGROUND)
    axes.tick_params(colors=INK, labelsize=8)
    axes.grid(color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_color(FAINT)


def _write(figure: Figure, path: Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        canvas.print_png(stream)
    return path
