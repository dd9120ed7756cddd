"""A BIDS data set goes in, a derivative that the validator takes comes out."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from synth.cli import main
from synth.data.case import discover, split_name
from synth.data.volume import Volume
from tests.conftest import LPS, ball, brain
from tests.test_wdm3d_generate import save_model


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("sub-01_T1w", ("sub-01", "t1n")),
        ("sub-01_ses-2_T1w", ("sub-01_ses-2", "t1n")),
        ("sub-01_ses-2_acq-mprage_run-1_T1w", ("sub-01_ses-2", "t1n")),
        ("sub-01_ce-gadolinium_T1w", ("sub-01", "t1c")),
        ("sub-01_T2w", ("sub-01", "t2w")),
        ("sub-A9_FLAIR", ("sub-A9", "t2f")),
        ("sub-01_label-lesion_mask", ("sub-01", "mask")),
        ("sub-01_ses-2_space-T1w_label-lesion_roi", ("sub-01_ses-2", "mask")),
        ("sub-01_desc-lesion_mask", ("sub-01", "mask")),
        ("sub-01_desc-brain_mask", None),
        ("sub-01_desc-inpainted_T1w", None),  # what we wrote is no input
        ("sub-01_bold", None),
    ],
)
def test_names_of_bids(name: str, found: tuple[str, str] | None) -> None:
    assert split_name(Path("x") / f"{name}.nii.gz") == found


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    """Three participants: two sessions, a mask of each spelling, one without a lesion."""
    root = tmp_path / "bids"
    (root / "code").mkdir(parents=True)
    said = {"Name": "x", "BIDSVersion": "1.10.0", "DatasetType": "raw"}
    (root / "dataset_description.json").write_text(json.dumps(said))
    (root / "README").write_text("A data set of made-up brains, for a test.")
    for number, (name, mask) in enumerate([
        ("sub-01/anat/sub-01", "label-lesion_mask"),
        ("sub-02/ses-1/anat/sub-02_ses-1", "label-lesion_roi"),
        ("sub-02/ses-2/anat/sub-02_ses-2", "desc-lesion_mask"),
        ("sub-03/anat/sub-03", None),
    ]):  # fmt: skip
        image = brain((20, 24, 18), seed=number)
        Volume(data=image[None].astype(np.float32), affine=LPS).save(root / f"{name}_T1w.nii.gz")
        if mask:
            hole = ball(image.shape, (12, 12, 9), 3) & (image > 0)
            place = root / "derivatives/lesions" / f"{name}_{mask}.nii.gz"
            Volume(data=hole[None], affine=LPS).save(place)
    return root


def test_one_command_from_data_set_to_derivative(bids: Path, tmp_path: Path) -> None:
    model, out = save_model(tmp_path / "model"), bids / "derivatives" / "synth"
    words = ["bids", bids, out, "participant", "--lesions", bids / "derivatives/lesions",
             "--model", model, "--estimate", "mean", "--device", "cpu"]  # fmt: skip
    assert main([*map(str, words)]) == 0
    made = sorted(p.relative_to(out).as_posix() for p in out.glob("sub-*/**/*.nii.gz"))
    assert made == [
        "sub-01/anat/sub-01_desc-inpainted_T1w.nii.gz",
        "sub-02/ses-1/anat/sub-02_ses-1_desc-inpainted_T1w.nii.gz",
        "sub-02/ses-2/anat/sub-02_ses-2_desc-inpainted_T1w.nii.gz",
    ]
    for path in made:
        case_id = Path(path).name.partition("_desc")[0]
        scan = Volume.load(next(bids.glob(f"sub-*/**/{case_id}_T1w.nii.gz")))
        hole = Volume.load_mask(
            next((bids / "derivatives" / "lesions").rglob(f"{case_id}_*lesion*"))
        )
        painted = Volume.load(out / path)
        assert np.array_equal(painted.data[~hole.data], scan.data[~hole.data])
        assert (painted.data[hole.data] != scan.data[hole.data]).any()
        sidecar = json.loads((out / path.replace(".nii.gz", ".json")).read_text())
        assert sidecar["VoxelsChanged"] == hole.data.sum()
        assert sidecar["Sources"][0].endswith(f"{case_id}_T1w.nii.gz")
        assert sidecar["Sources"][0].startswith("bids::sub-")
    assert json.loads((out / "dataset_description.json").read_text())["DatasetType"] == "derivative"
    content = {path: path.read_bytes() for path in out.rglob("*.nii.gz")}
    assert main([*map(str, words), "--participant-label", "02"]) == 0  # done already
    assert {path: path.read_bytes() for path in out.rglob("*.nii.gz")} == content


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--participant-label 07", "no sub-07"),
        ("--participant-label 03", "no lesion mask of these participants"),
    ],
)
def test_what_is_not_there_is_said(words: str, said: str, bids: Path, capsys) -> None:
    lesions = str(bids / "derivatives/lesions")
    assert main(["bids", str(bids), str(bids / "out"), "--lesions", lesions, *words.split()]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_that_is_no_data_set_is_refused(tmp_path: Path, capsys) -> None:
    assert main(["bids", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "is it a BIDS data set?" in capsys.readouterr().err


def test_other_verbs_find_the_cases_of_a_data_set(bids: Path) -> None:
    found = discover(bids)
    assert [c.id for c in found] == ["sub-01", "sub-02_ses-1", "sub-02_ses-2", "sub-03"]
    assert [set(c.files) for c in found] == [{"t1n", "mask"}] * 3 + [{"t1n"}]


VALIDATOR = shutil.which("bids-validator-deno")


@pytest.mark.slow
@pytest.mark.skipif(VALIDATOR is None, reason="pip install bids-validator-deno")
def test_the_validator_takes_the_derivative(bids: Path, tmp_path: Path) -> None:
    test_one_command_from_data_set_to_derivative(bids, tmp_path)
    command = [VALIDATOR, str(bids / "derivatives" / "synth"), "--format", "json"]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    issues = json.loads(found)["issues"]["issues"]
    assert [i for i in issues if i["severity"] == "error"] == []
