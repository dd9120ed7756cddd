"""The package as a stranger gets it: a wheel that holds its weights, and names one can list."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import synth

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel holds, far from the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    words = ["wheel", str(ROOT), "--no-deps", "--no-build-isolation", "-q", "-w", str(folder)]
    offline = {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    answer = subprocess.run(
        [sys.executable, "-m", "pip", *words],
        capture_output=True, text=True, check=False, env=os.environ | offline,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def call(installed: Path, folder: Path, *words: str) -> str:
    """Run Python where only the installed package is found; return what it prints."""
    answer = subprocess.run(
        [sys.executable, *words], cwd=folder, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(installed), "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def test_the_wheel_holds_the_weights_and_finds_them(installed: Path, tmp_path: Path) -> None:
    inside = {p.relative_to(installed / "synth") for p in installed.rglob("weights/**/*")}
    wanted = {p.relative_to(ROOT) for p in (ROOT / "weights").rglob("*")}
    assert inside == wanted
    assert len(wanted) > 10
    code = (
        "import synth\n"
        "from synth.base.weights import or_shipped\n"
        "from synth.study.stages import DEMO_WEIGHTS\n"
        "print(synth.__file__, or_shipped('weights/wdm3d'), DEMO_WEIGHTS / 'label_gan')"
    )
    package, *weights = call(installed, tmp_path, "-c", code).split()
    assert Path(package) == installed / "synth/__init__.py"
    names = ("wdm3d", "label_gan")
    assert weights == [str(installed / "synth/weights" / name) for name in names]


@pytest.mark.slow
def test_verbs_find_their_weights_outside_a_checkout(installed: Path, tmp_path: Path) -> None:
    for words in (
        "phantom cases --cases 1",
        "inpaint cases -o filled --device cpu",
        "masks -o shapes --count 1 --device cpu",
        "sample -o scans --end 1 --steps 2 --device cpu",
        "sample --lora weights/site_b -o as-site-b --end 1 --steps 2 --device cpu",
    ):
        call(installed, tmp_path, "-m", "synth", *words.split())
    assert (tmp_path / "filled/BraTS-GLI-00001-000-t1n-inference.nii.gz").exists()
    assert len(list((tmp_path / "shapes").glob("*-seg.nii.gz"))) == 1
    shown = call(installed, tmp_path, "-m", "synth", "demo", "--show")
    assert str(installed / "synth/weights/wdm3d") in shown


def test_info_lists_what_there_is_without_torch() -> None:
    code = (
        "import sys, synth.cli\n"
        "synth.cli.main(['info', '--json'])\n"
        "assert 'torch' not in sys.modules"
    )
    facts = json.loads(call(ROOT, ROOT, "-c", code))
    assert facts["version"] == synth.__version__
    assert list(facts["families"]) == ["label_gan", "wdm3d", "ddpm_lora", "segmentation"]
    assert "heads" in facts["presets"]["wdm3d"]
    assert {"inpaint", "train", "info"} < set(facts["verbs"])


def test_public_names_are_listed_and_there() -> None:
    import ddpm_lora
    import label_gan
    import segmentation
    import wdm3d

    assert {"inpaint", "Volume", "discover", "prepare", "__version__"} <= set(dir(synth))
    for package in (synth, label_gan, wdm3d, ddpm_lora, segmentation):
        assert dir(package) == sorted(package.__all__)
        for name in dir(package):
            assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = synth.nonsense
