"""The page of a study: whole, self-contained, and every figure that of its file."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segmentation.comparison import results
from synth.base.errors import SynthError
from synth.base.files import read_json, write_json
from synth.base.manifest import manifest
from synth.cli import look_up, main
from synth.data.volume import Volume
from synth.evaluate.inpainting import evaluate_inpainting
from synth.evaluate.masks import evaluate_masks
from synth.evaluate.scans.judge import evaluate_synthesis
from synth.evaluate.segmentation_scores import RegionScore
from synth.pictures import slices as thumbnail
from synth.study.report.account import _without_home
from synth.study.report.html import VOID, Html, Source, joined, tag
from synth.study.report.page import SECTIONS, cohort, inpainting, masks, synthesis, write_report
from synth.study.report.pictures import slices_through
from synth.study.report.study import PARTS, Study, digest, inputs, settings
from synth.study.stages import DEMO_WEIGHTS
from tests.conftest import ball
from tests.toy_scans import AFFINE, SHAPE, patient, write

CASES = 5
DRAWN = "BraTS-GLI-00001-000"
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)


def varied(files: dict[str, np.ndarray], k: int) -> dict[str, np.ndarray]:
    """Give each patient oedema of another size: all balls are alike."""
    more = ball(SHAPE, (18, 20, 18), 4 + 0.8 * k) & (files["t1n"] > 0) & (files["seg"] == 0)
    return files | {"seg": np.where(more, 2, files["seg"]).astype(np.uint8)}


def with_holes(files: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Add the inpainting masks: the tumour is unhealthy, a ball on the other side healthy."""
    brain = files["t1n"] > 0
    unhealthy = files["seg"] > 0
    healthy = ball(SHAPE, (10, 20, 18), 4) & brain & ~unhealthy
    masks = {"mask": healthy | unhealthy, "mask-healthy": healthy, "mask-unhealthy": unhealthy}
    return files | masks | {"t1n-voided": np.where(masks["mask"], 0, files["t1n"])}


def paint(folder: Path, case_id: str, files: dict[str, np.ndarray]) -> None:
    """Fill the holes by the mean of the rest, give or take; the first case several times over."""
    scan, hole = files["t1n"].astype(np.float32), files["mask"]
    rng = np.random.default_rng(0)
    filled, drawn = (
        np.where(hole, scan[(scan > 0) & ~hole].mean() + rng.normal(0, noise, SHAPE), scan)
        for noise in (20, 40)
    )
    made = {folder / f"{case_id}-t1n-inference.nii.gz": filled}
    if case_id == DRAWN:
        draws = folder.parent / "inpainted_draws"
        made[draws / f"{case_id}-t1n-inference.nii.gz"] = drawn
        made[draws / f"{case_id}-t1n-sd.nii.gz"] = np.where(hole, 15, 0)
    for path, data in made.items():
        Volume(data=data.astype(np.float32)[None], affine=AFFINE).save(path)
    record = manifest(
        "inpaint", {"model": "a/weights/wdm3d", "weights": "0a", "seed": 0, "steps": 4}, (),
        network_calls=8, seconds=1.25, peak_memory_mb=640,
    )  # fmt: skip
    write_json(folder / "records" / f"{case_id}.json", record)


def compared(out: Path) -> None:
    """Conclude a comparison of two arms on twelve made-up patients."""
    rng = np.random.default_rng(0)
    base = rng.normal(0.7, 0.1, 12)
    arms = {
        arm: [
            RegionScore(
                case=f"p{i}", patient=f"p{i}", region=region, convention="2023", fold=0, seed=0,
                values={"dice": float(d), "hd95": 20 * (1 - float(d)), "nsd_1mm": float(d),
                        "lesion_dice": float(d), "lesion_hd95": 30 * (1 - float(d))},
            )
            for i, d in enumerate(base + shift + rng.normal(0, 0.01, 12))
            for region in ("WT", "TC", "ET", "mean")
        ]
        for arm, shift in (("base", 0.0), ("synthetic", 0.02))
    }  # fmt: skip
    cohort = SimpleNamespace(train=[1] * 4, inner=[1], tested=[1] * 12, made=[1], unused=0)
    study = SimpleNamespace(
        out=out, arms=tuple(arms), cohorts={0: cohort}, trainings=(),
        settings=lambda: {"preset": "tiny", "arms": list(arms), "share": 0.5,
                          "folds": [0], "seeds": [0],
                          "config": {"width": 4}, "loop": {"steps": 9}, "data": "ab12"},
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "read_arms", lambda _: arms)
        results.conclude(study)  # ty: ignore[invalid-argument-type]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("studies") / "small study"
    for k in range(CASES):
        files = with_holes(varied(patient(k), k))
        case_id = f"BraTS-GLI-0000{k}-000"
        write(root / "cohort", case_id, files)
        if k < 3:
            paint(root / "inpainted", case_id, files)
        write(root / "train", f"BraTS-GLI-0010{k}-000", patient(100 + k))
        if k < 2:
            made = f"{case_id}-tumour00"
            write(root / "tumours", made, {"seg": patient(20 + k)["seg"]})
            write(root / "synthetic", f"{made}-synth00", patient(200 + k, "B"))
            write(root / "masks", f"label-0000{k}", {"seg": varied(patient(40 + k), k)["seg"]})
    plain = {"pictures": False}
    evaluate_masks(root / "masks", root / "cohort", root / "masks_eval", **plain)
    evaluate_inpainting(
        root / "inpainted", root / "cohort", root / "inpainted_eval", baselines=["brain-mean"],
        **plain,
    )  # fmt: skip
    evaluate_synthesis(
        root / "synthetic", root / "cohort", root / "synthetic_eval", train_dir=root / "train",
        **plain,
    )  # fmt: skip
    Image.new("RGB", (1700, 40), (9, 9, 9)).save(root / "masks_eval" / "masks.png")
    compared(root / "comparison")
    write_json(root / "lora" / "best" / "config.json", {
        "family": "ddpm_lora", "preset": "tiny", "step": 7, "seed": 1, "config": {"rank": 4},
        "data_hash": "0123456789abcdef", "versions": {"torch": "2"}, "git": None,
        "base": {"path": "../../weights/ddpm_lora", "preset": "tiny", "fingerprint": "f"},
    })  # fmt: skip
    write_json(root / "study.json", {"stages": [
        {"name": "cohort", "command": "synth phantom <cohort>", "seconds": 3.5, "state": "done",
         "started": "2025-01-01T00:00:00Z"},
        {"name": "lora", "command": "synth train", "seconds": 12.25, "state": "failed",
         "started": "2025-01-01T00:00:09Z", "network_calls": 40, "peak_memory_mb": 900},
    ]})  # fmt: skip
    return root


@pytest.fixture(scope="module")
def page(study: Path) -> str:
    report = write_report(study, study / "report.html")
    assert report.problems == ()
    return report.path.read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Reads a page strictly: what is opened is closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.data: list[tuple[dict[str, str], str]] = []
        self.cells: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        assert len(dict(attributes)) == len(attributes), f"{name} has an attribute twice"
        own = {key: value or "" for key, value in attributes}
        self.tags.append((name, own))
        if name == "data":
            self.data.append((own, ""))
        if name in ("td", "th"):
            self.cells.append("")
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, text: str) -> None:
        if "data" in self.open:
            self.data[-1] = (self.data[-1][0], self.data[-1][1] + text)
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += text
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(text)

    def all(self, attribute: str) -> list[str]:
        return [own[attribute] for _, own in self.tags if attribute in own]


def test_the_page_is_whole_and_fetches_nothing(page: str) -> None:
    read = Reader(page)
    ids = read.all("id")
    assert len(ids) == len(set(ids))
    for name in ("aria-labelledby", "for"):
        assert set(read.all(name)) <= set(ids)
    for address in (*read.all("src"), *read.all("href")):
        assert address.startswith("data:") or address[0] == "#"
        assert address[0] != "#" or address[1:] in ids
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(|srcset|<iframe|<object", page)
    assert "default-src 'none'" in page  # should anything slip through, the browser refuses it
    images = [own for name, own in read.tags if name == "img"]
    assert len(images) > 40
    for own in images:
        assert own["src"].startswith("data:image/")
        assert own["alt"]
    assert [name for name, _ in read.tags if name in ("h1", "main", "title")] == [
        "title", "h1", "main",
    ]  # fmt: skip
    assert [own["id"] for name, own in read.tags if name == "section"] == list(SECTIONS)


def test_every_figure_is_that_of_its_file(page: str, study: Path) -> None:
    read = Reader(page)
    files = set()
    for own, text in read.data:
        name, _, pointer = own["title"].partition("#")
        value = read_json(study / name, dict)
        for key in pointer.split("/")[1:]:
            key = key.replace("~1", "/").replace("~0", "~")
            value = value[int(key)] if isinstance(value, list) else value[key]
        assert own["value"] == repr(value)
        shown = text.replace("−", "-")
        decimals = len(shown.partition("e")[0].partition(".")[2])
        exponent = int(shown.partition("e")[2] or 0)
        # Shown to so many decimals: at most half of the last one off, and a bit of binary.
        assert abs(float(shown) - value) <= 0.5 * 10.0 ** (exponent - decimals) * (1 + 1e-9)
        files.add(name)
    parts = ("masks_eval", "inpainted_eval", "synthetic_eval", "comparison")
    assert files == {f"{part}/summary.json" for part in parts}


def test_every_table_of_the_judges_is_on_the_page(page: str, study: Path) -> None:
    cells = Reader(page).cells
    for part in ("masks_eval", "inpainted_eval", "synthetic_eval", "comparison"):
        tables = read_json(study / part / "summary.json", dict)["tables"]
        assert tables
        for table in tables:
            wanted = [cell for row in table["rows"] for cell in row]
            place = cells.index(wanted[0])
            places = [i for i, c in enumerate(cells) if c == wanted[0]]
            assert any(cells[i : i + len(wanted)] == wanted for i in places), (part, place)


def test_the_three_sentences_tell_what_the_files_tell(page: str, study: Path) -> None:
    words = " ".join("".join(Reader(page).text).split())
    assert (
        "From 5 cases this study made 2 generated tumours, 2 tumours placed in brains, "
        "3 scans with tissue painted in and 2 synthetic cases." in words
    )
    judged = read_json(study / "inpainted_eval" / "summary.json", dict)
    methods, apart = judged["methods"], judged["prediction_minus"]["brain mean"]["psnr_01"]
    mean, low, high = (f"{apart[k]:+.2f}".replace("-", "−") for k in ("mean", "low", "high"))
    ours, fill = (methods[m]["psnr_01"]["mean"] for m in ("prediction", "brain mean"))
    said = (
        f"Painted tissue reaches a PSNR of {ours:.2f} dB where the best fill without a network "
        f"(brain mean) reaches {fill:.2f}: it is worse than the best classical fill on these "
        f"{judged['cases']} cases ({mean} dB [{low}, {high}])"
    )
    assert words.count(said) == 2  # above, and in its section
    assert re.search(r"The 2 generated masks [^.]*real [^.]*MMD² of shapes", words)
    assert re.search(r"The 2 synthetic scans [^;]*; 0 of them copy a training case\.", words)
    verdicts = read_json(study / "comparison" / "summary.json", dict)["verdicts"]
    assert words.count(verdicts["synthetic against base"]) == 2  # above, and in its section


def test_methods_and_cost_come_from_the_manifests(page: str, study: Path) -> None:
    read = Reader(page)
    words = " ".join("".join(read.text).split())
    painted = (
        "Healthy tissue was painted by synth inpaint (model a/weights/wdm3d, weights 0a, seed 0,"
    )
    assert f"{painted} steps 4)" in words
    assert "weights/wdm3d was used as given, not trained here." in words
    adapter = "The ddpm_lora model in lora has preset tiny, step 7, seed 1, data 0123456789ab; "
    assert f"{adapter}it is an adapter (LoRA), fine-tuned from weights/ddpm_lora." in words
    assert "and compared by synth compare (arms base synthetic, preset tiny, share 0.5" in words
    record = read_json(study / "inpainted" / "records" / "BraTS-GLI-00000-000.json", dict)
    assert f"torch {record['versions']['torch']} and 2" in words
    place = read.cells.index("inpainted")
    # three records of 1.25 s and 8 calls each
    assert read.cells[place : place + 6] == ["inpainted", "3", "3.8", "1.25", "24", "640"]
    place = read.cells.index("lora")
    assert read.cells[place : place + 5] == ["lora", "failed", "12.2", "40", "900"]
    assert read.cells[read.cells.index("together") + 2] == "15.8"
    assert "synth phantom <cohort>" in read.cells  # escaped on the way, or it were no text


def painted(mean: float, low: float | None, high: float | None, mse: float) -> Source:
    apart = {
        "psnr_01": {"mean": mean, "low": low, "high": high, "n": 6},
        "mse": {"mean": mse},
    }
    means = {"prediction": 18.9, "brain mean": 18.7, "mirror": 17.0}
    values = {
        "methods": {name: {"psnr_01": {"mean": value}} for name, value in means.items()},
        "prediction_minus": {"brain mean": apart},
    }
    return Source(name="s.json", values=values)


@pytest.mark.parametrize(
    ("figures", "said", "mse"),
    [
        (
            (0.18, -1.57, 1.88, 0.001),
            "no evidence that it beats the best classical fill on",
            "worse",
        ),
        (
            (-0.2, -1.5, 1.1, -0.001),
            "no evidence that it beats the best classical fill on",
            "better",
        ),
        ((1.2, 0.3, 2.1, -0.001), "it beats the best classical fill on", ""),
        ((-1.2, -2.3, -0.1, 0.001), "it is worse than the best classical fill on", ""),
        ((0.4, None, None, -0.001), "too few cases (6) to say", ""),
    ],
)
def test_inpainting_says_whether_it_beats_the_best_fill(
    figures: tuple[float, float, float, float], said: str, mse: str
) -> None:
    words = re.sub("<[^>]+>", "", str(inpainting.verdict(painted(*figures))))
    assert words.startswith(said)
    assert ("by mean MSE" in words) == bool(mse)
    if mse:
        assert f"it is {mse} (" in words
    if said.endswith("on"):
        assert "on these 6 cases (" in words


@pytest.mark.parametrize(
    ("kid", "said"),
    [
        ((2.1, 1.3, 3.0), "can be told from real ones"),
        ((0.1, -0.4, 0.5), "are no farther from real scans than halves of these"),
        ((0.4, 0.1, 0.9), "are not shown to differ from real ones"),
        ((0.6, 0.4, 0.9), "are not shown to differ from real ones"),
    ],
)
def test_scans_say_whether_they_can_be_told(kid: tuple[float, float, float], said: str) -> None:
    own = {"cases": 16, "kid": dict(zip(("value", "low", "high"), kid, strict=True))}
    values = {"generated": own, "real": {"halves": {"kid": {"high": 0.507}}}}
    words = re.sub("<[^>]+>", "", str(synthesis.verdict(Source(name="s.json", values=values))))
    assert words.startswith(f"the 16 synthetic scans {said}")
    assert words.endswith("halves of the real ones stay within 0.507)")
    assert synthesis.verdict(Source(name="s.json", values={"generated": {"kid": None}})) is None


@pytest.mark.parametrize(
    ("apart", "said"),
    [
        ((0.104, 0.06, 0.19), "can be told from real ones (MMD² of shapes 0.104 [0.060, 0.190]"),
        ((0.02, 0.0, 0.05), "are no farther from real masks than halves"),
        ((0.045, 0.001, 0.107), "are not shown to differ from real ones"),
    ],
)
def test_masks_say_whether_they_can_be_told(apart: tuple[float, float, float], said: str) -> None:
    made = {"masks": 24, "mmd2": dict(zip(("value", "low", "high"), apart, strict=True))}
    values: dict[str, Any] = {"generated": made, "real": {"halves": {"mmd2": {"high": 0.055}}}}
    words = re.sub("<[^>]+>", "", str(masks.verdict(Source(name="s.json", values=values))))
    assert words.startswith(f"the 24 generated masks {said}")
    values |= {"real": {"halves": {"mmd2": {"high": None}}}}
    assert masks.verdict(Source(name="s.json", values=values)) is None


def test_a_pair_is_cut_at_one_height_on_any_grid() -> None:
    up = Volume(data=np.zeros((1, 4, 5, 31), np.float32), affine=np.eye(4))
    down = Volume(data=up.data, affine=np.diag([1.0, 1.0, -1.0, 1.0]))
    fine = Volume(data=np.zeros((1, 4, 5, 61), np.float32), affine=np.diag([1.0, 1.0, 0.5, 1.0]))
    height = thumbnail.find_height(up, "axial", 7)
    assert [thumbnail.find_slice(v, "axial", height) for v in (up, down, fine)] == [7, 23, 14]
    assert thumbnail.find_height(down, "axial", 23) == pytest.approx(height)


def test_the_nearest_pair_is_shown_at_one_height(study: Path, monkeypatch) -> None:
    shown = {}

    def strip(case, kind="", *, height=None) -> Html:
        shown[kind] = (case.id, height)
        return Html()

    monkeypatch.setattr(synthesis, "case_strip", strip)
    own = Study(root=study)
    found = own.summary("synthetic_eval")
    assert found is not None
    synthesis._memory(own, found)
    made, training, _ = synthesis._nearest(own) or ("", "", 0)
    case = next(c for c in own.cases("synthetic") if c.id == made)
    height = cohort.height_of(case)
    assert shown == {"made": (made, height), "trained on": (training, height)}
    labels = case.load("seg")
    assert thumbnail.find_slice(labels, "axial", height) == thumbnail.find_fullest(labels, "axial")


def test_the_axis_of_volumes_ends_with_the_data() -> None:
    ml = {"WT": np.array([12.7, 29.8, 213.2]), "TC": np.array([2.3, 11.5, 112.4])}
    drawn = Reader(cohort._plot(ml))
    ticks = [float(own["x1"]) for name, own in drawn.tags
             if name == "line" and own["class"] == "grid"]  # fmt: skip
    dots = [float(own["cx"]) for name, own in drawn.tags if name == "circle"]
    assert [word for word in drawn.text if word.isdigit()] == ["0", "50", "100", "150", "200"]
    assert max(dots) == cohort.PLOT_WIDTH - 16
    per_ml = (ticks[-1] - ticks[0]) / 200
    assert max(dots) == pytest.approx(ticks[0] + 213.2 * per_ml, abs=0.1)  # rounded to 0.1 px


def test_the_colours_of_outlined_masks_are_explained(page: str) -> None:
    words = " ".join("".join(Reader(page).text).split())
    assert inpainting.OUTLINED in words
    assert masks.LABELLED in words


def films_of(page: str) -> list[tuple[str, np.ndarray, int, list[int]]]:
    """Return (panel, film, start, slices) of each picture with a slider."""
    found, waiting = [], []
    for name, own in Reader(page).tags:
        if name == "img" and own.get("class") == "film":
            blob = base64.b64decode(own["src"].partition(",")[2])
            waiting.append((own["alt"], np.asarray(Image.open(io.BytesIO(blob)).convert("L"))))
        if name == "input":
            slices = [int(word) for word in own["data-slices"].split()]
            found += [(alt, film, int(own["value"]), slices) for alt, film in waiting]
            waiting = []
    assert not waiting
    return found


def test_films_show_the_slices_they_say(page: str, study: Path) -> None:
    films = films_of(page)
    # cases, planes; before, given, after, error; one draw and sd of what was drawn several times
    assert len(films) == 3 * 3 * 4 + 3 * 2
    shown = [alt.partition(", axial")[0] for alt, *_ in films if alt.endswith(", axial")]
    (drawn,) = (i for i, name in enumerate(shown) if name == "t1n one draw painting")
    assert shown[drawn - 1] == "t1n after painting"
    assert [name.partition(",")[0] for name in shown[drawn + 1 : drawn + 3]] == ["|error|", "sd"]
    first = next(f for f in films if f[0] == "t1n given painting, axial")
    _, film, start, slices = first
    assert film.shape[0] % len(slices) == 0
    frames = film.reshape(len(slices), -1, film.shape[1])
    errors = {row.split(",")[0]: float(row.split(",")[idx]) for row, idx in _prediction_rows(study)}
    best = min(errors, key=lambda case: errors[case])
    mask = Volume.load_mask(study / "cohort" / best / f"{best}-mask.nii.gz")
    sizes = mask.data[0].sum(axis=(0, 1))
    assert slices[start] == sizes.argmax()  # it opens where the hole is largest
    scan = Volume.load(study / "cohort" / best / f"{best}-t1n.nii.gz")
    black = [(frame < 40).sum() / frame.size for frame in frames]
    hole = [mask.data[0, ..., i].sum() for i in slices]
    empty = [(scan.data[0, ..., i] == 0).sum() for i in slices]
    # Black is the background and the hole: the share of black follows their count, slice by slice.
    assert np.corrcoef(black, np.add(hole, empty))[0, 1] > 0.98


def _prediction_rows(study: Path) -> Iterator[tuple[str, int]]:
    lines = (study / "inpainted_eval" / "per_case.csv").read_text().splitlines()
    place = lines[0].split(",").index("mse")
    yield from ((line, place) for line in lines[1:] if line.split(",")[1] == "prediction")


def test_a_case_that_was_drawn_several_times_is_shown(tmp_path: Path) -> None:
    from synth.study.report.inpainting import _chosen

    names = [f"c{i}" for i in range(5)]
    for part, kind, cases in (("inpainted", "inference", names), ("inpainted_draws", "sd", "")):
        (tmp_path / part).mkdir()
        for name in cases or ["c1", "c3"]:
            (tmp_path / part / f"{name}-t1n-{kind}.nii.gz").touch()
    (tmp_path / "inpainted_eval").mkdir()
    rows = [f"{name},prediction,0.{i + 1}" for i, name in enumerate(names)]
    table = tmp_path / "inpainted_eval" / "per_case.csv"
    table.write_text("\n".join(["case,method,mse", *rows]))
    assert list(_chosen(Study(root=tmp_path))) == ["c0", "c2", "c4", "c1"]
    (tmp_path / "inpainted_draws" / "c4-t1n-sd.nii.gz").touch()
    assert list(_chosen(Study(root=tmp_path))) == ["c0", "c2", "c4"]


def test_outside_the_hole_before_and_after_are_one_picture(page: str) -> None:
    films = {alt: (film, start, slices) for alt, film, start, slices in reversed(films_of(page))}
    for plane in ("axial", "coronal", "sagittal"):
        after, start, slices = films[f"t1n after painting, {plane}"]
        given, _, _ = films[f"t1n given painting, {plane}"]
        height = len(after) // len(slices)
        rows = slice(start * height, (start + 1) * height)
        seen = given[rows].astype(float)
        inside = seen > 60  # tissue that was given, away from the edge of the hole
        apart = np.abs(seen - after[rows])[inside]
        assert np.median(apart) < 4  # of 255: what WebP loses


def test_slices_run_through_the_mask_and_open_at_its_middle() -> None:
    data = np.zeros((8, 9, 60), bool)
    data[3:5, 4, 10:50] = True
    data[2:6, 2:7, 30] = True
    mask = Volume(data=data[None], affine=np.eye(4))
    chosen, start = slices_through(mask, "axial")
    assert (chosen[0], chosen[-1], len(chosen)) == (8, 51, 24)
    assert abs(chosen[start] - 30) <= 1  # every second slice is left out
    assert slices_through(mask, "coronal")[0] == list(range(9))


def test_the_same_folder_gives_the_same_page(page: str, study: Path, tmp_path: Path) -> None:
    assert write_report(study, tmp_path / "again.html").path.read_text(encoding="utf-8") == page


def test_a_missing_part_is_one_line_with_a_command_that_parses(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(study / "cohort", tmp_path / "s" / "cohort")
    assert main(["report", str(tmp_path / "s")]) == 0
    assert "report.html" in capsys.readouterr().out
    read = Reader((tmp_path / "s" / "report.html").read_text(encoding="utf-8"))
    words = "".join(read.text)
    for part in set(PARTS) - {"cohort"}:
        command = PARTS[part].format(tmp_path / "s")
        assert words.count(command) == 1, part
        look_up(command.split()[1:]).parse()
    assert sum(own.get("class") == "missing" for _, own in read.tags) >= len(PARTS) - 1


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("running", "Comparison of segmentation models: at work since 2025-01-01T00:00:00Z, says"),
        ("stopped", "No comparison of segmentation models here yet: its stage was stopped."),
        ("waiting", "No comparison of segmentation models here yet. The command"),
    ],
)
def test_a_stage_that_is_not_done_is_said_to_be_so(
    study: Path, tmp_path: Path, state: str, said: str
) -> None:
    root = tmp_path / "s"
    for part in ("inpainted", "synthetic"):
        shutil.copytree(study / part, root / part)
    # One arm has been segmented already; that is no comparison.
    shutil.copytree(study / "inpainted" / "records", root / "comparison" / "base" / "records")
    command = "synth compare runs/s --split runs/s/split.json --out runs/s/comparison --steps 3"
    write_json(root / "study.json", {"stages": [
        {"name": "inpainted", "command": "synth inpaint", "state": state},
        {"name": "comparison", "command": command, "state": state,
         "started": "2025-01-01T00:00:00Z"},
    ]})  # fmt: skip
    read = Reader(write_report(root, root / "report.html").path.read_text(encoding="utf-8"))
    words = " ".join("".join(read.text).split())
    assert said in words
    assert words.count(f"The command for it: {command}") == 1
    assert "is being tested" in words or state != "running"
    assert "trained and compared" not in words
    assert f"Not finished ({state} in study.json): Healthy tissue was painted by" in words


def test_a_damaged_part_costs_its_section_only(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(study, tmp_path / "s")
    (tmp_path / "s" / "synthetic_eval" / "summary.json").write_text("{")
    summary = read_json(tmp_path / "s" / "masks_eval" / "summary.json", dict)
    del summary["real"]
    write_json(tmp_path / "s" / "masks_eval" / "summary.json", summary)
    assert main(["report", str(tmp_path / "s"), "--title", "a <b> & c"]) == 2
    said = capsys.readouterr().out
    assert "Synthetic scans: " in said
    assert "not valid JSON" in said
    assert "masks_eval/summary.json: no real/masks" in said
    text = (tmp_path / "s" / "report.html").read_text(encoding="utf-8")
    assert "<h1>a &lt;b&gt; &amp; c</h1>" in text
    read = Reader(text)
    assert [own["id"] for name, own in read.tags if name == "section"] == list(SECTIONS)
    assert films_of(text)


def test_a_folder_that_is_no_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SynthError, match="is not a study"):
        Study(root=tmp_path)
    with pytest.raises(SynthError, match="no such folder"):
        Study(root=tmp_path / "none")


def test_text_is_escaped_unless_it_is_html() -> None:
    inner = tag("b", "<&>")
    assert tag("p", "a<b ", inner, title='"q"', hidden="", class_=None) == (
        '<p title="&quot;q&quot;" hidden>a&lt;b <b>&lt;&amp;&gt;</b></p>'
    )
    assert isinstance(joined("<", Html("<br>")), Html)
    assert joined("<", Html("<br>")) == "&lt;<br>"


def test_a_figure_keeps_its_full_value_and_place() -> None:
    source = Source(name="a/b.json", values={"x/y~z": [{"v": -0.123456, "none": None}]})
    assert source.figure("x/y~z", 0, "v", form=".2f") == (
        '<data value="-0.123456" title="a/b.json#/x~1y~0z/0/v">−0.12</data>'
    )
    assert source.figure("x/y~z", 0, "none") == "–"
    with pytest.raises(SynthError, match=r"a/b\.json: no x/y~z/1"):
        source.figure("x/y~z", 1)


def test_settings_and_hashes_of_many_manifests_are_merged() -> None:
    made = [
        Source(name="1", values={"arguments": {"seed": s, "steps": 4}, "inputs": {"a": "1f"},
                                 "files": {"real": {"c": "2e"}}})
        for s in (0, 1, 0)
    ]  # fmt: skip
    assert settings(made) == {"seed": [0, 1], "steps": [4]}
    assert inputs(made) == [("a", "1f"), ("real c", "2e")]
    answer = subprocess.run(
        ["sha256sum"], input="1f  a\n2e  real c\n", capture_output=True, text=True, check=True
    )
    assert digest(inputs(made)) == answer.stdout.split()[0]


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
def test_a_browser_opens_it_without_a_word(page: str, study: Path) -> None:
    text = seen_by_chromium(study / "report.html")
    read = Reader(re.sub(r"<!DOCTYPE html>", "<!doctype html>", text))
    sliders = [own for name, own in read.tags if name == "input"]
    assert len(sliders) == 9
    for own in sliders:  # the script ran: it says to a screen reader which slice is shown
        assert own["aria-valuetext"].startswith("slice ")
    (button,) = [own for name, own in read.tags if name == "button"]
    assert "hidden" not in button


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize(("scheme", "ground"), [("light", "#f3f5f7"), ("dark", "#0f1013")])
def test_it_fits_a_desk_and_a_phone_by_day_and_night(
    page: str, tmp_path: Path, width: int, scheme: str, ground: str
) -> None:
    around = tmp_path / "around.html"
    around.write_text(FRAME.format(width=width, page=html.escape(page)), encoding="utf-8")
    text = seen_by_chromium(around, dark=scheme == "dark")
    found = json.loads(html.unescape(text.partition("<pre>")[2].partition("</pre>")[0]))
    assert found["inner"] == width
    # Everything unfolded, nothing is wider than the page, whose scroll bar takes some of it.
    assert found["scroll"] == found["client"] <= width
    assert found["button"] == ("Light page" if scheme == "dark" else "Dark page")
    colour = ", ".join(str(int(ground[i : i + 2], 16)) for i in (1, 3, 5))
    assert found["ground"] == f"rgb({colour})"


# Chromium's own window is never narrower than 500 px.
FRAME = """<!doctype html><meta charset="utf-8"><html style="color-scheme: light dark">
<link rel="icon" href="data:,"><pre></pre>
<iframe style="width: {width}px; height: 900px; border: 0" srcdoc="{page}"></iframe><script>
const frame = document.querySelector("iframe");
frame.onload = () => {{
  const inside = frame.contentDocument, root = inside.documentElement;
  for (const part of inside.querySelectorAll("details")) part.open = true;
  document.querySelector("pre").textContent = JSON.stringify({{
    inner: frame.contentWindow.innerWidth, scroll: root.scrollWidth, client: root.clientWidth,
    ground: frame.contentWindow.getComputedStyle(inside.body).backgroundColor,
    button: inside.querySelector("button").textContent,
  }});
}};
</script>"""


def seen_by_chromium(path: Path, *, dark: bool = False) -> str:
    """Open a page, whose console has to stay empty, and return what became of it."""
    answer = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         "--window-size=1400,1000", f"--blink-settings=preferredColorScheme={0 if dark else 1}",
         "--virtual-time-budget=3000", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in answer.stderr
    return answer.stdout


def test_pictures_are_true_to_millimetres() -> None:
    data = np.zeros((10, 20, 40), np.float32)
    data[2:8, 3:17, 5:35] = 100
    volume = Volume(data=data[None], affine=np.diag([4.0, 2.0, 1.0, 1.0]))
    shapes = {p: thumbnail.draw_slice(volume, p, 5, side=80).shape[:2] for p in thumbnail.PLANES}
    # rows × columns: 40×40 mm in every plane
    assert shapes == {"axial": (80, 80), "coronal": (80, 80), "sagittal": (80, 80)}
    tall = Volume(data=data[None], affine=np.diag([1.0, 2.0, 1.0, 1.0]))
    assert thumbnail.draw_slice(tall, "axial", 5, side=80).shape[:2] == (80, 20)


def test_labels_lie_on_the_voxels_they_name_in_any_scheme_and_orientation() -> None:
    from synth.pictures.slices import LABEL_COLOURS, cut_slice

    scan = np.full((12, 14, 9), 50, np.float32)
    labels = np.zeros(scan.shape, np.int16)
    labels[2, 3, 4], labels[5, 6, 4], labels[8, 9, 4] = 1, 2, 4
    flipped = np.array([[0, -1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], float)
    for affine in (np.eye(4), flipped):
        volume = Volume(data=scan[None], affine=affine)
        overlay = thumbnail.tumour_overlay(volume.with_data(labels), "brats2021")
        side = max(volume.shape[:2])  # a pixel a voxel
        picture = thumbnail.draw_slice(volume, "axial", 4, overlay=overlay, side=side).astype(int)
        where = cut_slice(volume.with_data(labels), "axial", 4)
        grey = 255 * (1 - thumbnail.LABEL_OPACITY)  # a constant scan is white
        for label, number in ((1, 1), (2, 2), (4, 3)):
            colour = LABEL_COLOURS[number]
            rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
            (pixel,) = picture[where == label]
            assert np.abs(pixel - (grey + thumbnail.LABEL_OPACITY * rgb)).max() <= 1
        assert (picture[where == 0] == 255).all()


def test_data_uris_hold_the_picture() -> None:
    picture = np.zeros((16, 24, 3), np.uint8)
    picture[:, 12:] = 200
    kind, _, blob = thumbnail.encode_picture(picture, quality=95).partition(",")
    assert kind.startswith("data:image/")
    back = np.asarray(Image.open(io.BytesIO(base64.b64decode(blob))).convert("RGB")).astype(int)
    assert back.shape == picture.shape
    assert np.abs(back - picture).mean() < 3
    assert json.dumps(kind)  # plain text


def test_the_page_does_not_say_where_its_user_lives() -> None:
    said = _without_home(f"synth inpaint --model {DEMO_WEIGHTS}/wdm3d {Path.home()}/scans /data/x")
    assert said == "synth inpaint --model weights/wdm3d ~/scans /data/x"
