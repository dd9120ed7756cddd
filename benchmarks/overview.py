"""The picture of the README: a patient, what is drawn for the same labels, the tumour removed.

    python -m benchmarks.overview data/unseen BraTS-GLI-00001-000 -o docs/overview.png

Both are made here and now by the shipped weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import wdm3d
from ddpm_lora.generate import SamplerOptions, draw, load
from ddpm_lora.label_maps import read
from synth.data.case import MODALITIES, Case, discover
from synth.data.tumour_mask import tumour_mask
from synth.pictures.montage import Marks, draw_montage
from synth.pictures.slices import LABEL_COLOURS, MASK_COLOURS, cut_slice

ROWS = ("a made-up patient", "drawn for its labels", "t1n: mask, hole, filled")


def overview(case: Case, path: Path) -> Path:
    """Show the slice with most tumour."""
    labels, scans = case.load("seg"), {m: case.load(m) for m in MODALITIES}
    t1n = scans["t1n"]
    height = int(np.argmax((labels.data[0] > 0).sum((0, 1))))
    mask = t1n.with_data(tumour_mask(case, t1n)[None].astype(np.uint8))
    hole = t1n.with_data(np.where(mask.data > 0, 0, t1n.data))
    made = draw(read(case), load(), SamplerOptions()).scans
    volumes = [
        [*scans.values(), t1n],
        [*made.values(), made["t1n"]],
        [t1n, hole, wdm3d.inpaint(t1n, mask).image],
    ]
    shown, edge = (cut_slice(v, "axial", height) for v in (labels, mask))
    marks: dict[tuple[int, int], Marks] = {
        (0, 4): (shown, LABEL_COLOURS, False),
        (1, 4): (shown, LABEL_COLOURS, False),
        (2, 0): (edge, MASK_COLOURS, True),
    }
    rows = [[cut_slice(v, "axial", height) for v in row] for row in volumes]
    columns = (*MODALITIES, "labels")
    return draw_montage(rows, path, row_labels=ROWS, column_labels=columns, marks=marks)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cohort", type=Path)
    parser.add_argument("case")
    parser.add_argument("-o", "--out", type=Path, default=Path("docs/overview.png"))
    given = parser.parse_args()
    (chosen,) = (c for c in discover(given.cohort) if c.id == given.case)
    print(overview(chosen, given.out))
