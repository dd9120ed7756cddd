"""The section on generated masks, beside real ones."""

from __future__ import annotations

from synth.data.case import Case
from synth.pictures import slices
from synth.study.report.cohort import evenly
from synth.study.report.html import Html, Source, figure, image, joined, tag, tile
from synth.study.report.pictures import finished, frame_of
from synth.study.report.section import Section, folded_tables, how_near, in_plain_words, missing
from synth.study.report.study import Study

PLACED = 5
LABELLED = "Necrotic core red, oedema green, enhancing tumour yellow."
OUTLINED = (
    "Outlined in blue: healthy tissue that is cut out, to be painted again where the truth is "
    "known. A mask may be of several tumour shapes, so that a slice shows several areas: all of "
    "them are healthy, the patient's own tumour is not outlined."
)


def section(study: Study) -> Section:
    """Show what was drawn, and how far its shapes are from real ones."""
    found = study.summary("masks_eval")
    parts = []
    if not study.has("masks"):
        parts.append(missing(study, "masks", "generated masks"))
    if found is None:
        parts.append(missing(study, "masks_eval", "shape statistics"))
    else:
        parts += [_tiles(found), in_plain_words(verdict(found)), _page(study),
                  folded_tables(study, "masks_eval")]  # fmt: skip
    if not study.has("tumours"):
        parts.append(missing(study, "tumours", "tumours placed in brains"))
    parts += [
        _placed(study, "tumours", "Tumours placed in brains", LABELLED),
        _placed(study, "masks", "Healthy masks placed in brains", OUTLINED),
    ]
    return Section(
        id="masks", title="Generated masks",
        lead="Tumours drawn from noise should vary as real ones do, in size, shape and layers, and "
        "copy none of them. The real masks' own line says how far apart real sets are by chance.",
        body=joined(*parts),
    )  # fmt: skip


def verdict(found: Source) -> Html | None:
    """Say in plain words whether generated masks are apart from real ones; None if unknown."""
    low, high = (found.get("generated", "mmd2", end) for end in ("low", "high"))
    reach = found.get("real", "halves", "mmd2", "high")
    if low is None or high is None or reach is None:
        return None
    said = how_near(low, high, reach, "masks")
    return joined(
        "the ", found.figure("generated", "masks", form="d"), f" generated masks {said} (MMD² of "
        "shapes ", found.figure("generated", "mmd2", "value", form=".3f"), " [",
        found.figure("generated", "mmd2", "low", form=".3f"), ", ",
        found.figure("generated", "mmd2", "high", form=".3f"),
        "], halves of the real ones stay within ",
        found.figure("real", "halves", "mmd2", "high", form=".3f"), ")",
    )  # fmt: skip


def _placed(study: Study, part: str, title: str, caption: str) -> Html:
    """Show made masks in the brains they were placed in, where the scan is known."""
    both = [(case, study.known.get(case.origin, case)) for case in study.cases(part)]
    both = [(c, brain) for c, brain in both
            if "t1n" in brain.files and {"seg", "healthy"} & c.files.keys()]  # fmt: skip
    if not both:
        return Html()
    brains = {case.id: brain for case, brain in both}
    pictures = [_in_brain(c, brains[c.id]) for c in evenly([c for c, _ in both], PLACED)]
    note = tag("p", caption, class_="note")
    return joined(tag("h3", title), note, tag("div", *pictures, class_="panels"))


def _in_brain(case: Case, brain: Case) -> Html:
    scan = brain.load("t1n")
    if "healthy" in case.files:
        overlay = slices.mask_overlay(case.load("healthy"))
    else:
        overlay = slices.tumour_overlay(case.load("seg"), case.scheme)
    picture = slices.draw_slice(
        scan, "axial", slices.find_fullest(overlay.volume, "axial"), overlay=overlay,
        frame=frame_of(scan, "axial"),
    )  # fmt: skip
    return figure(image(slices.encode_picture(picture), f"mask in the brain, {case.id}"), case.id)


def _tiles(found: Source) -> Html:
    tiles = [
        tile(found.figure("generated", "masks", form="d"), "masks judged",
             joined("beside ", found.figure("real", "masks", form="d"), " real ones")),
        tile(found.figure("generated", "mmd2", "value", form=".3f"), "MMD² of shapes",
             joined("halves of the real masks stay within ",
                    found.figure("real", "halves", "mmd2", "high", form=".3f"))),
        tile(found.figure("generated", "diversity", form=".3f"), "Dice of pairs",
             "how alike two generated masks are"),
    ]  # fmt: skip
    if "copied" in found.get("generated"):
        tiles.append(
            tile(found.figure("generated", "copied", form="d"), "copies of training masks",
                 joined("Dice of ", found.figure("real", "copy_dice", form=".2f"), " or more"))
        )  # fmt: skip
    else:
        tiles.append(tile("–", "copies of training masks", "not looked for: --train or --split"))
    return tag("div", *tiles, class_="tiles")


def _page(study: Study) -> Html:
    path = study.root / "masks_eval" / "masks.png"
    if not path.is_file():
        return tag("p", "Its pictures were not drawn (--no-pictures).", class_="missing")
    return finished(
        path, "Rows of generated and of real tumours as shaded bodies",
        "From the smallest to the largest, evenly: none is picked. A wedge is cut away to show the "
        "layers: necrosis red, oedema green, enhancing tumour yellow.",
    )  # fmt: skip
