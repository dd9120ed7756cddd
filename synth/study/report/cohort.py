"""The section on the cohort: some cases, sizes of tumours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from synth.data.case import MODALITIES, Case
from synth.data.labels import region
from synth.data.volume import Volume
from synth.pictures import slices
from synth.study.report.html import Html, joined, number, table, tag, tile
from synth.study.report.pictures import Panel, frame_of, strip
from synth.study.report.section import Section, missing
from synth.study.report.study import Study

SHOWN = 4
MOST_MEASURED = 100
PHANTOMS = "cohort.json"
"""What `synth phantom` leaves beside the cases it makes."""
REGIONS = ("WT", "TC", "ET")
COLOURS = {"WT": "#2f9e44", "TC": "#e5484d", "ET": "#c79a00"}
PLOT_WIDTH, LINE = 640, 34


def section(study: Study) -> Section:
    """Show the cohort."""
    return Section(
        id="cohort", title="The cohort",
        lead="What everything else was made from and is judged by. Labels are red for necrotic "
        "core, green for oedema, yellow for enhancing tumour; the patient's right is on your left.",
        body=_body(study) if study.has("cohort") else missing(study, "cohort", "cases"),
    )  # fmt: skip


def height_of(case: Case) -> float:
    """Return how high the axial slice with most of the tumour is, of 0 to 1."""
    labels = case.load("seg" if "seg" in case.files else "t1n")
    return slices.find_height(labels, "axial", slices.find_fullest(labels, "axial"))


def case_strip(case: Case, kind: str = "", *, height: float | None = None) -> Html:
    """Show the contrasts of a case and its labels, where the tumour is largest or as high as said.

    A height is comparable between cases, whatever their grids: see `slices.find_height`.
    """
    volumes = {m: case.load(m) for m in MODALITIES if m in case.files}
    if not volumes:
        return tag("p", f"{case.id} has labels only.", class_="note")
    first = next(iter(volumes.values()))
    panels = [_panel(case, m, volume) for m, volume in volumes.items()]
    labels = case.load("seg") if "seg" in case.files else None
    if labels is not None:
        overlay = slices.tumour_overlay(labels, case.scheme)
        panels.append(_panel(case, "labels", first, overlay))
    index = (
        slices.find_fullest(labels if labels is not None else first, "axial")
        if height is None
        else slices.find_slice(first, "axial", height)
    )
    heading = tag("h3", f"{case.id}, {kind}" if kind else case.id)
    return tag("div", heading, strip(panels, "axial", index, frame_of(first, "axial")))


def evenly(items: Sequence[Case], most: int) -> list[Case]:
    """Return some of the items, evenly spaced."""
    places = np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)
    return [items[i] for i in places]


def _panel(case: Case, name: str, volume: Volume, overlay: slices.Overlay | None = None) -> Panel:
    window = slices.grey_window(volume.data)
    return Panel(
        caption=name,
        alt=f"{name} of {case.id}",
        drawn=lambda plane, index, frame: slices.draw_slice(
            volume, plane, index, window=window, overlay=overlay, frame=frame
        ),
    )


def _body(study: Study) -> Html:
    cases = study.cases("cohort")
    labelled = [case for case in cases if "seg" in case.files]
    measured = evenly(labelled, MOST_MEASURED)
    volumes = {case.id: case.load("seg") for case in measured}
    ml = {name: _sizes_ml(measured, volumes, name) for name in REGIONS}
    grids = Counter(_grid(v) for v in volumes.values())
    patients = len({case.patient for case in cases})
    grid, count = grids.most_common(1)[0] if grids else ("no label map was read", 0)
    tiles = [
        tile(str(len(cases)), "cases", f"of {patients} patients"),
        tile(str(len(labelled)), "with labels"),
        tile(grid.split(" at ")[-1], "voxels", f"{grid.split(' at ')[0]} in {count} cases"),
    ]
    of = "" if len(measured) == len(labelled) else f" of {len(measured)} cases, evenly by id"
    sizes = [["region", "median, ml", "smallest to largest, ml", "cases without"]]
    for name, values in ml.items():
        there = values[values > 0]
        spread = f"{number(there.min(), '.1f')} to {number(there.max(), '.1f')}"
        sizes.append([
            name, number(float(np.median(there)), ".1f") if there.size else "–",
            spread if there.size else "–", str(int((values == 0).sum())),
        ])  # fmt: skip
    parts = [tag("div", *tiles, class_="tiles")]
    if (study.root / "cohort" / PHANTOMS).is_file():
        words = "Made-up patients of synth phantom. Below, real means these."
        parts.append(tag("p", words, class_="note"))
    parts += map(case_strip, evenly(cases, SHOWN))
    if measured:
        parts += [
            tag("h3", f"Label volumes{of}"), _plot(ml),
            table(sizes, "volumes of the labelled regions"),
        ]  # fmt: skip
    return joined(*parts)


def _sizes_ml(cases: Sequence[Case], volumes: Mapping[str, Volume], name: str) -> np.ndarray:
    return np.array([
        region(volumes[c.id].data, c.scheme, name).sum() * volumes[c.id].voxel_ml for c in cases
    ])  # fmt: skip


def _grid(volume: Volume) -> str:
    shape = "×".join(map(str, volume.shape))
    edges = [f"{s:.3g}" for s in volume.spacing_mm]
    return f"{shape} at {edges[0] if len(set(edges)) == 1 else '×'.join(edges)} mm"


def _plot(ml: Mapping[str, np.ndarray]) -> Html:
    """Draw every case as a dot by its volume: a line a region, the bar at the median."""
    top = max(float(v.max()) for v in ml.values()) or 1.0  # the axis ends with the data
    step = _round_step(top)
    left, right = 40, PLOT_WIDTH - 16

    def across(value: float) -> float:
        return left + (right - left) * value / top

    height = LINE * len(ml) + 26
    parts = []
    for value in (step * place for place in range(int(top / step) + 1)):
        x = f"{across(value):.1f}"
        parts.append(tag("line", x1=x, x2=x, y1="4", y2=str(height - 22), class_="grid"))
        parts.append(tag("text", f"{value:g}", x=x, y=str(height - 8), text_anchor="middle"))
    for line, (name, values) in enumerate(ml.items()):
        y = LINE * line + 20
        parts.append(tag("text", name, x="4", y=str(y + 4)))
        parts += [
            tag("circle", cx=f"{across(v):.1f}", cy=str(y), r="5", fill=COLOURS[name])
            for v in values.tolist()
        ]
        x = f"{across(float(np.median(values))):.1f}"
        parts.append(tag("line", x1=x, x2=x, y1=str(y - 11), y2=str(y + 11), class_="median"))
    words = "; ".join(f"{n}: median {np.median(v):.1f} ml" for n, v in ml.items())
    drawing = tag(
        "svg", *parts, viewBox=f"0 0 {PLOT_WIDTH} {height}", role="img", class_="dots",
        aria_label=f"Volume of each region in every case, in ml. {words}",
    )  # fmt: skip
    caption = tag("figcaption", "ml of tissue; one dot is one case, the bar the median")
    return tag("figure", drawing, caption)


def _round_step(largest: float) -> float:
    """Return the smallest of 1, 2, 2.5, 5 × 10ⁿ of which five reach the largest value."""
    power = 10 ** np.floor(np.log10(largest / 5))
    return float(next(power * m for m in (1, 2, 2.5, 5, 10) if 5 * power * m >= largest))
