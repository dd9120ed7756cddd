"""The comparison: nothing leaks, arms differ in one thing, kills change nothing, answers known."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from segmentation.comparison import trainings
from segmentation.comparison.leakage import split_cases
from segmentation.comparison.results import conclude
from segmentation.comparison.training_mix import (
    ARMS,
    Mixed,
    arm_items,
    hash_real_slots,
    require_same_real_slots,
)
from segmentation.config import PRESETS, TRAINING, Config
from segmentation.network import build
from synth.base.errors import SynthError
from synth.base.seeding import mix
from synth.checkpoints import checkpoint
from synth.cli import main
from synth.data.cache import ArrayCache
from synth.data.case import MODALITIES, Case, discover
from synth.data.split import Entry, Split, patient_marks, write_split
from synth.data.volume import Volume
from synth.evaluate.segmentation_scores import RegionScore, write_scores
from tests.conftest import LPS
from tests.toy_recipe import environment

EDGE = 32
SMALL = replace(PRESETS["tiny"], width=4, patch=(32, 32, 32), spacing_mm=1.0, augment="none")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_case(root: Path, number: int, *, wrong: bool = False) -> Case:
    """A ball of brain with a tumour whose regions are bright; its labels may lie elsewhere."""
    rng = np.random.default_rng(number)
    name = f"BraTS-GLI-{number:05d}-000"
    places = np.indices((EDGE,) * 3) - (EDGE - 1) / 2
    brain = np.linalg.norm(places, axis=0) < 14
    centre = rng.uniform(-5, 5, 3)
    far = np.linalg.norm(places - centre[:, None, None, None], axis=0)
    labels = np.select([far < 3, far < 4.5, far < 6], [1, 3, 2], 0).astype(np.uint8) * brain
    for k, m in enumerate(MODALITIES):
        scan = brain * (100 + 5 * rng.standard_normal(brain.shape) + 20 * k)
        for label, gain in ((1, -40 if m == "t1c" else 30), (2, 40), (3, 90)):
            scan[labels == label] += gain
        image = np.maximum(scan, 0)[None].astype(np.float32)
        Volume(data=image, affine=LPS).save(root / name / f"{name}-{m}.nii.gz")
    shown = np.roll(labels, 12, axis=0) * brain if wrong else labels
    Volume(data=shown[None].astype(np.uint8), affine=LPS).save(root / name / f"{name}-seg.nii.gz")
    return next(c for c in discover(root / name))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    """Six patients of fold 0 and seven of fold 1."""
    root = tmp_path_factory.mktemp("real")
    return [Entry(case=write_case(root, k), fold=k // 6 if k < 12 else 1) for k in range(13)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    """Four cases drawn after fold 0, by a generator that has seen no other fold."""
    root = tmp_path_factory.mktemp("made")
    return [
        Entry(
            case=write_case(root, 100 + k), fold=-1,
            source=f"BraTS-GLI-{k:05d}-000", seen_folds=(0,),
        )
        for k in range(4)
    ]  # fmt: skip


def split_of(*entries: Sequence[Entry]) -> Split:
    return Split(training=tuple(e for part in entries for e in part))


def test_every_case_has_one_part(real, made):
    own = split_cases(split_of(real, made), 1, inner_share=0.34)
    parts = [{c.id for c in part} for part in (own.train, own.inner, own.tested)]
    assert [len(p) for p in parts] == [4, 2, 7]
    assert set.union(*parts) == {e.case.id for e in real}
    assert parts[2] == {e.case.id for e in real if e.fold == 1}
    # What was made after an inner patient would help to choose by what it was trained on.
    assert {c.id for c in own.made} == {e.case.id for e in made if e.source not in parts[1]}
    assert own.unused == 4 - len(own.made) > 0
    extra = replace(real[0], case=replace(real[0].case, id="BraTS-GLI-00077-000"), fold=-1)
    assert extra.case in split_cases(split_of(real, [extra]), 1, inner_share=0.34).train


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"source": "BraTS-GLI-00007-000"}, "00007.*leak"),
        ({"source": "BraTS-GLI-00007-001"}, "00007.*leak"),  # another visit of the same patient
        ({"seen_folds": None}, "does not say"),
    ],
)
def test_a_planted_leak_is_refused(real, made, change, words):
    with pytest.raises(SynthError, match=words):
        split_cases(split_of(real, made, [replace(made[0], **change)]), 1, inner_share=0.2)


def test_what_a_tested_patient_is_behind_is_not_used(real, made):
    """A donor's fold, or one that the shapes' model has seen, is among the folds seen."""
    seen = replace(made[0], case=replace(made[0].case, id="BraTS-GLI-00300-000"), seen_folds=(0, 1))
    own = split_cases(split_of(real, [seen]), 1, inner_share=0.2)
    assert (own.made, own.unused) == ((), 1)


def weights_of(folder: Path, patients: list[str] | None) -> Path:
    facts = {} if patients is None else {"patients": patients}
    return checkpoint.save(
        folder, model=build(SMALL), family="segmentation", preset="tiny", config=SMALL, **facts
    )


def test_weights_that_have_seen_a_tested_patient_are_refused(real, made, tmp_path, caplog):
    split = split_of(real, made)
    trained, tested, other = (
        patient_marks([real[0].case]), patient_marks([real[8].case]), ["0123456789ab"],
    )  # fmt: skip
    again = replace(real[8].case, id="BraTS-GLI-00008-001")  # another visit of hers

    def begun(name: str, patients: list[str] | None, **changes) -> str:
        caplog.clear()
        config = replace(SMALL, init_from=str(weights_of(tmp_path / name, patients)))
        trainings.begin_comparison(
            study_of(tmp_path / f"of-{name}", split, config=config, **changes)
        )
        return caplog.text

    for name, known in (
        ("one", tested), ("both", trained + tested), ("visit", patient_marks([again])),
    ):  # fmt: skip
        with pytest.raises(SynthError, match=r"was trained on patients of fold 1.*leak"):
            begun(name, known)
        assert not (tmp_path / f"of-{name}").exists()
    assert "does not say" not in begun("apart", trained + other)
    assert "silent does not list its patients" in begun("silent", None)
    with pytest.raises(SynthError, match="patients of fold 0"):
        begun("zero", trained, folds=(0, 1), arms=("base", "duplicated"))


def test_fine_tuned_weights_remember_whom_their_base_has_seen(tmp_path):
    weights_of(tmp_path / "base", ["aa", "bb"])
    config = replace(SMALL, init_from=str(tmp_path / "base"))
    describe = {"family": "segmentation", "preset": "tiny", "config": config, "patients": ["cc"]}
    (tmp_path / "tuned").mkdir()
    recipe = trainings.Recipe(config, build(SMALL))
    recipe.writer(describe)(tmp_path / "tuned", recipe.model, {})
    assert checkpoint.read_metadata(tmp_path / "tuned")["patients"] == ["aa", "bb", "cc"]


def test_a_stopped_study_is_told_from_one_to_be_mended(real, made, tmp_path, monkeypatch):
    """Exit code 130 where it was asked to stop, for the launcher to try again; then it goes on."""
    root = Path(os.path.commonpath([e.case.path("t1n") for e in (*real, *made)]))
    write_split(root / "split.json", split_of(real[:7], made), root)
    words = [
        "compare", root, "--split", root / "split.json", "-o", tmp_path / "study", "--folds", 1,
        "--arms", "base", "synthetic", "--seeds", 0, "--steps", 6, "--batch-size", 1,
        "--validate-every", 3, "--save-every", 3, "--preview-every", 0, "--width", 4,
        "--patch", 32, 32, 32, "--spacing-mm", 1.0, "--device", "cpu",
    ]  # fmt: skip
    words = [str(word) for word in words]
    steps, losses = [], trainings.Recipe.losses

    def asking(self, batch):
        steps.append(1)
        if len(steps) == 8:  # in the second unit
            signal.raise_signal(signal.SIGTERM)
        yield from losses(self, batch)

    monkeypatch.setattr(trainings.Recipe, "losses", asking)
    assert main(words) == 143
    assert len(list((tmp_path / "study").rglob("scores.csv"))) == 1
    assert main(words) == 0
    assert len(list((tmp_path / "study").rglob("scores.csv"))) == 2
    assert len(steps) == 12  # nothing was done twice


def test_a_copy_of_a_tested_case_is_refused(real, made):
    twin = replace(made[0], case=replace(real[8].case, id="BraTS-GLI-00500-000"))
    with pytest.raises(SynthError, match="copy of BraTS-GLI-00008-000"):
        split_cases(split_of(real, made, [twin]), 1, inner_share=0.2)


def test_a_patient_in_two_folds_is_refused(real):
    second = replace(real[0], case=replace(real[0].case, id="BraTS-GLI-00000-001"), fold=1)
    with pytest.raises(SynthError, match="in fold 1 and in another"):
        split_cases(split_of(real, [second]), 1, inner_share=0.2)


def test_what_another_folds_generator_made_is_not_used(real, made):
    own = split_cases(split_of(real, made), 0, inner_share=0.2)
    assert (own.made, own.unused) == ((), 4)
    study = trainings.Comparison(
        out=Path("nowhere"), split=split_of(real, made), config=SMALL, loop=TRAINING["tiny"],
        folds=(0,),
    )  # fmt: skip
    with pytest.raises(SynthError, match="no generated case may train"):
        trainings.begin_comparison(study)


@pytest.fixture
def arms(real, made, tmp_path) -> dict[str, Mixed]:
    own = split_cases(split_of(real, made), 1, inner_share=0.2)
    config = replace(SMALL, augment="light")
    cache = ArrayCache(tmp_path)
    return {arm: arm_items(arm, own, config, share=0.5, cache=cache) for arm in ARMS}


def test_arms_see_the_same_real_crops(arms):
    found = {arm: hash_real_slots(items, seed=3, slots=40) for arm, items in arms.items()}
    require_same_real_slots(list(found.values()))
    assert len(found["base"]) == 40
    assert len(set(found["base"].values())) > 30  # crops differ from slot to slot
    assert found["synthetic"].keys() == found["duplicated"].keys() == found["augmented"].keys()
    assert 10 < len(found["synthetic"]) < 30
    shifted = dict.fromkeys(found["base"], "other")
    with pytest.raises(AssertionError, match="different real crops"):
        require_same_real_slots([found["base"], shifted])


def test_other_slots_hold_what_the_arm_promises(arms):
    seeds = [mix(0, k) for k in range(60)]
    taken = [s for s in seeds if arms["synthetic"].other_place(s) is not None]
    made = arms["synthetic"].other.cases
    assert {arms["synthetic"].other_place(s) for s in taken} == set(range(len(made)))
    for arm in ("duplicated", "augmented"):
        again = arms[arm].other.cases
        assert len(again) == len(made)
        assert {c.id for c in again} <= {c.id for c in arms[arm].real.cases}
    drawn = {arm: arms[arm].item(0, taken[0])["image"] for arm in ("duplicated", "augmented")}
    assert not torch.equal(drawn["duplicated"], drawn["augmented"])
    assert arms["augmented"].other.config.augment == "full"


def study_of(out: Path, split: Split, **changes) -> trainings.Comparison:
    loop = replace(
        TRAINING["tiny"], steps=6, batch_size=1, validate_every=3, save_every=3, preview_every=0
    )
    given = {"config": SMALL, "loop": loop, "folds": (1,), "arms": ("base", "synthetic")}
    given["seeds"] = (0,)
    return trainings.Comparison(out=out, split=split, **{**given, **changes})


def test_a_killed_study_ends_in_the_same_table(real, made, tmp_path, monkeypatch):
    split = split_of(real[:9], made)
    whole = study_of(tmp_path / "whole", split)
    trainings.begin_comparison(whole)
    trainings.run_trainings(whole, whole.trainings)
    words = conclude(whole)
    killed = study_of(tmp_path / "killed", split)
    trainings.begin_comparison(killed)
    judged, judge = [], trainings.judge

    def dying(case, path, conventions):
        judged.append(case.id)
        if len(judged) == 5:  # in the second unit, in the midst of its scores
            raise KeyboardInterrupt
        return judge(case, path, conventions)

    monkeypatch.setattr(trainings, "judge", dying)
    with pytest.raises(KeyboardInterrupt):
        trainings.run_trainings(killed, killed.trainings)
    assert sum(killed.scores(u).exists() for u in killed.trainings) == 1
    with pytest.raises(SynthError, match="1 of 2 trainings are not done"):
        conclude(killed)
    trainings.begin_comparison(killed)
    trainings.run_trainings(killed, killed.trainings)
    assert conclude(killed) == words
    for name in ("per_case.csv", "table.md"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    other = study_of(tmp_path / "killed", split, share=0.4)
    with pytest.raises(SynthError, match="begun with other share"):
        trainings.begin_comparison(other)


def test_side_by_side_trainings_end_in_the_same_table(real, made, tmp_path):
    """In two processes or one, a thread each."""
    split = split_of(real[:9], made)
    found = []
    for workers in (1, 2):
        study = study_of(tmp_path / str(workers), split)
        trainings.begin_comparison(study)
        assert trainings.run_trainings(study, study.trainings, workers=workers)
        found.append(conclude(study))
    assert found[0] == found[1]
    tables = [(tmp_path / w / "per_case.csv").read_bytes() for w in "12"]
    assert tables[0] == tables[1]


def test_progress_says_which_training_of_how_many_it_is(real, made, tmp_path, monkeypatch):
    """Also after a kill: what was done before counts."""
    labels = []

    def stopped(*_, label, **__):
        labels.append(label)
        return {"stopped": True}

    monkeypatch.setattr(trainings, "train", stopped)
    study = study_of(tmp_path, split_of(real, made), seeds=(0, 1))
    assert not trainings.run_trainings(study, study.trainings)
    for unit in study.trainings[:3]:
        write_scores(study.scores(unit), [])
    assert not trainings.run_trainings(study, study.trainings)
    assert labels == ["[1/4] fold 1, seed 0, base", "[4/4] fold 1, seed 1, synthetic"]


def test_noise_for_labels_is_a_loss_and_is_said(real, tmp_path):
    """The reduced proof of harm, trained: wrong labels in most slots; the slow one has it all."""
    root = tmp_path / "made"
    wrong = [
        Entry(case=write_case(root, 200 + k, wrong=True), fold=-1, source="x", seen_folds=())
        for k in range(4)
    ]
    loop = replace(
        TRAINING["tiny"], steps=70, batch_size=1, validate_every=35, save_every=70, preview_every=0
    )
    study = study_of(
        tmp_path / "study", split_of(real, wrong), loop=loop, share=0.85,
        config=replace(SMALL, lr=5e-3),
    )  # fmt: skip
    trainings.begin_comparison(study)
    trainings.run_trainings(study, study.trainings)
    words = conclude(study)
    summary = json.loads((tmp_path / "study" / "summary.json").read_text())
    found = summary["comparisons"]["synthetic against base"]["primary"]
    assert found["patients_interval"][1] < 0, words
    assert "nothing can be said from one training" in summary["verdicts"]["synthetic against base"]
    assert summary["means"]["base"]["dice"] > 0.5
    for name in ("forest-synthetic-base.png", "pairs-synthetic-base.png", "table.md"):
        assert (tmp_path / "study" / name).stat().st_size > 500


def test_a_patch_from_the_data_is_in_the_study_as_numbers(real, made, tmp_path, monkeypatch):
    monkeypatch.setattr(trainings, "run_trainings", lambda *_, **__: True)
    root = tmp_path.parent
    write_split(tmp_path / "split.json", split_of(real, made), root)
    words = ["compare", root, "--split", tmp_path / "split.json", "-o", tmp_path / "study",
             "--folds", 1, "--patch", "0,0,0", "--spacing-mm", 1]  # fmt: skip
    for _ in range(2):
        assert main([str(word) for word in words]) == 0
        begun = json.loads((tmp_path / "study" / "study.json").read_text())
        assert begun["config"]["patch"] == [32, 32, 32]  # of brains that are 28 voxels wide


def scored(study: trainings.Comparison, gain: float) -> float:
    """Write the scores of a study that trained nothing; return the mean difference.

    Cases differ by far more than arms do, every training has its luck on all cases alike, and every
    case its own.
    """
    rng = np.random.default_rng(0)
    tested = study.cohorts[1].tested
    level = rng.uniform(0.5, 0.7, len(tested))
    found: dict[str, list[np.ndarray]] = {arm: [] for arm in study.arms}
    for unit in study.trainings:
        luck, own = rng.normal(0, 0.005), rng.normal(0, 0.01, (len(tested), 3))
        dice = level[:, None] + luck + own + gain * (unit.arm == "synthetic")  # (cases, 3)
        found[unit.arm].append(dice)
        rows = [
            RegionScore(
                case=case.id, patient=case.patient, region=region, convention="2023",
                values={"dice": value, "hd95": 20 * (1 - value), "nsd_1mm": value,
                        "lesion_dice": value, "lesion_hd95": 20 * (1 - value)},
                fold=unit.fold, seed=unit.seed,
            )
            for case, values in zip(tested, dice, strict=True)
            for region, value in zip(
                ("WT", "TC", "ET", "mean"), [*values, values.mean()], strict=True
            )
        ]  # fmt: skip
        write_scores(study.scores(unit), rows)
    return float(np.mean(found["synthetic"]) - np.mean(found["base"]))


@pytest.mark.parametrize(
    ("gain", "answer"), [(0.0, "no evidence that they differ"), (0.05, "gain"), (-0.2, "loss")]
)
def test_scores_of_three_seeds_end_in_the_sentence_they_deserve(real, made, tmp_path, gain, answer):
    """The answers of the slow proof (copies, more, noise) from scores alone: nothing is trained."""
    study = study_of(tmp_path, split_of(real, made), seeds=(0, 1, 2))
    mean = scored(study, gain)
    words = conclude(study)
    found = json.loads((tmp_path / "summary.json").read_text())
    primary = found["comparisons"]["synthetic against base"]["primary"]
    low, high = primary["mean_interval"]
    assert primary["mean"] == pytest.approx(mean, abs=1e-12)
    assert low < mean < high
    amount = f"{mean:+.4f}".replace("-", "−")
    said = found["verdicts"]["synthetic against base"]
    assert said in words
    assert said in (tmp_path / "table.md").read_text()
    assert "7 cases of 7 patients, 3 trainings of each arm" in said
    assert (f"a {answer} of {amount} [" if gain else f"{answer}, {amount} [") in said
    assert (low <= 0 <= high) == (gain == 0)
    assert primary["detectable"] < 0.05  # the gain is one that this sample can show
    assert f"would have shown {primary['detectable']:.4f} with 80 % power" in said


@pytest.mark.parametrize(("late", "said"), [(0.7, True), (0.605, False), (0.5, False)])
def test_a_training_that_ended_too_early_is_said_to_have(real, made, tmp_path, late, said):
    """The inner Dice of the base, at 50, 75 and 100 % of the steps."""
    study = study_of(tmp_path, split_of(real, made), seeds=(0, 1))
    scored(study, 0.0)
    assert trainings.late_rise(study) is None  # no curve, no statement
    for unit in study.trainings:
        ends = {trainings.BASE: late}.get(unit.arm, 0.9)
        curve = [(1, None), (3, 0.55), (4, 0.6), (6, ends)]
        lines = [{"step": s} | ({trainings.INNER: d} if d else {}) for s, d in curve]
        path = study.folder(unit) / "run" / "metrics.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(map(json.dumps, lines)))
    assert trainings.late_rise(study) == pytest.approx(max(late - 0.6, 0))
    assert ("The segmenters are undertrained" in conclude(study)) == said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arms": ("synthetic",)}, "base and at least one other"),
        ({"arms": ("base", "base")}, "named twice"),
        ({"share": 1.0}, "between 0 and 1"),
        ({"seeds": ()}, "seeds"),
        ({"folds": (7,)}, "no fold 7"),
    ],
)
def test_what_is_no_comparison_is_refused(real, made, tmp_path, changes, words):
    with pytest.raises(SynthError) as caught:
        trainings.begin_comparison(study_of(tmp_path, split_of(real, made), **changes))
    assert words in f"{caught.value.message} {caught.value.hint}"


def test_full_augmentation_leaves_nothing_for_that_arm(real, made, tmp_path):
    own = split_cases(split_of(real, made), 1, inner_share=0.2)
    full = Config(augment="full", patch=(32, 32, 32))
    with pytest.raises(SynthError, match="the same as duplicated"):
        arm_items("augmented", own, full, share=0.5, cache=ArrayCache(tmp_path))


@pytest.mark.slow
def test_five_kills_change_nothing(tmp_path):
    real = [Entry(case=write_case(tmp_path / "real", k), fold=k // 4) for k in range(8)]
    made = [
        Entry(case=write_case(tmp_path / "made", 100 + k), fold=-1, source="x", seen_folds=())
        for k in range(3)
    ]
    write_split(tmp_path / "split.json", split_of(real, made), tmp_path)

    def command(out: str) -> list[str]:
        words = [
            "compare", tmp_path, "--split", tmp_path / "split.json", "-o", tmp_path / out,
            "--arms", "base", "synthetic", "--seeds", 0, 1, "--steps", 12, "--batch-size", 1,
            "--validate-every", 4, "--save-every", 4, "--preview-every", 0, "--width", 4,
            "--patch", 32, 32, 32, "--spacing-mm", 1.0,
        ]  # fmt: skip
        return [sys.executable, "-m", "synth", *map(str, words)]

    began = time.monotonic()
    subprocess.run(command("whole"), check=True, capture_output=True, env=environment())
    whole, rng = time.monotonic() - began, np.random.default_rng(0)
    killed = 0
    for _ in range(5):
        process = subprocess.Popen(
            command("killed"), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            process.wait(timeout=rng.uniform(0.2, 0.6) * whole)
        except subprocess.TimeoutExpired:
            process.kill()
            killed += 1
        process.communicate()
    assert killed >= 3
    subprocess.run(command("killed"), check=True, capture_output=True, env=environment())
    for name in ("per_case.csv", "table.md"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


# --- the proof: three studies whose answers are known -------------------------------------------


def phantoms(folder: Path, count: int, seed: int) -> list[Case]:
    verb("phantom", folder, "--cases", count, "--seed", seed)
    cases = discover(folder)  # every cohort counts from 1
    return [replace(c, id=f"BraTS-GLI-{1000 * seed + k:05d}-000") for k, c in enumerate(cases)]


def verb(*words: object) -> str:
    answer = subprocess.run(
        [sys.executable, "-m", "synth", *map(str, words)],
        capture_output=True, text=True, timeout=3000, check=False, env=environment(),
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr[-3000:]
    return answer.stdout


def noise_like(case: Case, folder: Path, number: int) -> Case:
    """White noise in place of scans, and this case's labels."""
    name, rng = f"BraTS-GLI-{90000 + number:05d}-000", np.random.default_rng(number)
    for m in MODALITIES:
        scan = case.load(m)
        data = rng.uniform(1, 1000, scan.data.shape).astype(np.float32) * (scan.data > 0)
        scan.with_data(data).save(folder / name / f"{name}-{m}.nii.gz")
    case.load("seg").save(folder / name / f"{name}-seg.nii.gz")
    return discover(folder / name)[0]


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["copies", "more", "noise"])
def test_known_answers(tmp_path, scenario):
    few = 4 if scenario == "more" else 12
    tested = [Entry(case=c, fold=1) for c in phantoms(tmp_path / "tested", 12, 31)]
    train = [Entry(case=c, fold=0) for c in phantoms(tmp_path / "train", few, 32)]
    if scenario == "more":
        cases = phantoms(tmp_path / "more", 24, 33)
    elif scenario == "noise":
        cases = [noise_like(e.case, tmp_path / "noise", k) for k, e in enumerate(train)]
    else:
        cases = [replace(e.case, id=f"{e.case.id}-synth00") for e in train]
    made = [Entry(case=c, fold=-1, source="made", seen_folds=(0,)) for c in cases]
    write_split(tmp_path / "split.json", split_of(tested, train, made), tmp_path)
    said = verb(
        "compare", tmp_path, "--split", tmp_path / "split.json", "-o", tmp_path / "study",
        "--folds", 1, "--arms", "base", "synthetic", "--inner-share", 0.25, "--steps",
        {"copies": 200, "more": 800, "noise": 200}[scenario],
        "--validate-every", 100, "--preview-every", 0, "--seeds", 0, 1, 2, "--share",
        {"copies": 0.5, "more": 0.8, "noise": 0.8}[scenario],
    )  # fmt: skip
    summary = json.loads((tmp_path / "study" / "summary.json").read_text())
    words = summary["verdicts"]["synthetic against base"]
    print(said)
    expected = {"copies": "no evidence", "more": "a gain of +", "noise": "a loss of −"}[scenario]
    assert expected in words
