"""A data set that nnU-Net takes: its own rules on the folder, the folds, and the way back."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from synth.cli import main
from synth.data.case import Case, discover
from synth.data.split import Entry, Split, write_split
from synth.data.volume import Volume
from tests.conftest import write_case

CHANNELS = 4


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """Four patients in two folds, one for testing, and two made cases: of patient 1, of both."""
    for k in range(1, 6):
        write_case(tmp_path / "real", f"BraTS-GLI-{k:05d}-000", seed=k)
    for k in (1, 2):
        write_case(tmp_path / "made", f"BraTS-GLI-{k:05d}-000-synth00", seed=9 + k)
    real = [Entry(case=c, fold=k // 2) for k, c in enumerate(discover(tmp_path / "real")[:4])]
    made = [
        Entry(case=c, fold=-1, source=real[k].case.id, seen_folds=((), (0, 1))[k])
        for k, c in enumerate(discover(tmp_path / "made"))
    ]
    tested = (Entry(case=discover(tmp_path / "real")[4]),)
    path = tmp_path / "split.json"
    write_split(path, Split(training=(*real, *made), testing=tested), tmp_path)
    return path


def verify(folder: Path) -> dict:
    """The rules of nnU-Net's verify_dataset_integrity, from its documentation."""
    facts = json.loads((folder / "dataset.json").read_text())
    assert facts["channel_names"].keys() == {str(k) for k in range(CHANNELS)}
    names = sorted(p.name.removesuffix(".nii.gz") for p in (folder / "labelsTr").iterdir())
    assert len(names) == facts["numTraining"]
    assert len(list((folder / "imagesTr").iterdir())) == CHANNELS * len(names)
    own = [v for v in facts["labels"].values() if isinstance(v, list)]
    values = {0, *(label for region in own for label in region)}
    assert values == set(range(max(values) + 1))  # consecutive, background 0
    assert len(facts["regions_class_order"]) == len(facts["labels"]) - 1
    for name in names:
        labels = nib.nifti1.load(folder / "labelsTr" / f"{name}.nii.gz")
        assert set(np.unique(np.asarray(labels.dataobj))) <= values
        for k in range(CHANNELS):
            scan = nib.nifti1.load(folder / "imagesTr" / f"{name}_{k:04d}.nii.gz")
            assert scan.shape == labels.shape
            assert np.allclose(scan.affine, labels.affine)
    return facts


def test_the_folder_obeys_nnu_nets_rules(split: Path, tmp_path: Path) -> None:
    out = tmp_path / "nnUNet_raw" / "Dataset501_Tumours"
    assert main(["export", "nnunet", str(split), "-o", str(out)]) == 0
    facts = verify(out)
    assert facts["numTraining"] == 6
    assert len(list((out / "imagesTs").iterdir())) == CHANNELS
    case = discover(tmp_path / "real")[0]
    copied = out / "imagesTr" / f"{case.id}_0001.nii.gz"
    assert copied.read_bytes() == case.path("t1c").read_bytes()
    # Written in the order given, a voxel of each region gets the label of the region's own class.
    classes = case.load("seg").data[0]
    written = np.zeros_like(classes)
    for (_, region), label in zip(
        list(facts["labels"].items())[1:], facts["regions_class_order"], strict=True
    ):
        written[np.isin(classes, region)] = label
    assert np.array_equal(written, classes)


def test_made_cases_train_and_never_validate(split: Path, tmp_path: Path) -> None:
    out = tmp_path / "Dataset007_x"
    assert main(["export", "nnunet", str(split), "-o", str(out), "--link"]) == 0
    folds = json.loads((out / "splits_final.json").read_text())
    ids = [f"BraTS-GLI-{k:05d}-000" for k in range(1, 5)]
    assert [set(f["val"]) for f in folds] == [set(ids[:2]), set(ids[2:])]
    # The first made case is of a patient of fold 0; the second's model saw both folds.
    assert [set(f["train"]) for f in folds] == [set(ids[2:]), {*ids[:2], f"{ids[0]}-synth00"}]
    linked = out / "imagesTr" / f"{ids[0]}_0000.nii.gz"
    assert linked.is_symlink()
    assert linked.resolve() == discover(tmp_path / "real")[0].path("t1n").resolve()
    verify(out)


def test_other_label_numbers_become_those_of_2023(tmp_path: Path) -> None:
    write_case(tmp_path, "BraTS2021_00001")
    case = discover(tmp_path)[0]
    labels = case.load("seg") if case.scheme != "brats2021" else Volume.load_labels(
        case.path("seg"))  # fmt: skip
    data = labels.data.copy()
    data[data == 3] = 4
    labels.with_data(data).save(case.path("seg"))
    old = Case(id=case.id, files=case.files, scheme="brats2021")
    write_split(tmp_path / "split.json", Split(training=(Entry(case=old, fold=0),)), tmp_path)
    out = tmp_path / "Dataset002_old"
    assert main(["export", "nnunet", str(tmp_path / "split.json"), "-o", str(out)]) == 0
    written = Volume.load_labels(out / "labelsTr" / f"{case.id}.nii.gz").data
    assert np.array_equal(written, labels.data)


def test_what_nnu_net_predicts_is_judged(split: Path, tmp_path: Path) -> None:
    out = tmp_path / "Dataset501_Tumours"
    assert main(["export", "nnunet", str(split), "-o", str(out)]) == 0
    words = ["evaluate", "segmentation", out / "labelsTs", tmp_path, "--split", split]
    assert main([*map(str, words), "-o", str(tmp_path / "judged"), "--no-pictures"]) == 0
    found = json.loads((tmp_path / "judged" / "summary.json").read_text())
    assert '"mean": 1.0' in json.dumps(found)


@pytest.mark.parametrize(
    ("name", "said"), [("tumours", "no name of a data set"), ("Dataset1_x", "no name")]
)
def test_a_wrong_name_is_refused(name: str, said: str, split: Path, capsys) -> None:
    assert main(["export", "nnunet", str(split), "-o", str(split.parent / name)]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_that_is_there_is_not_overwritten(split: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "Dataset501_x").mkdir()
    words = ["export", "nnunet", str(split), "-o", str(tmp_path / "Dataset501_x")]
    assert main(words) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*words, "--force"]) == 0
