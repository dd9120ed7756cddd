"""The two methods of the BraTS Orchestrator's Inpainter, without its containers.

Inpainter().infer_single(t1n="A-t1n-voided.nii.gz", mask="A-mask.nii.gz", output_file="A.nii.gz")
Inpainter(force_cpu=True).infer_batch("cases", "filled")  # A/A-t1n-voided.nii.gz, A/A-mask.nii.gz
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from synth.base.devices import pick
from synth.base.errors import SynthError
from synth.data.case import Case, discover, require_unique
from synth.jobs.cases import Output, run_cases
from wdm3d.cases import case_of, hole_of, scans_of
from wdm3d.config import SamplerOptions
from wdm3d.generate import inpaint, load

log = logging.getLogger(__name__)


class Inpainter:
    """A loaded model that fills scans.

    Args:
        model: checkpoint folder of wdm3d.
        cuda_devices: which GPU; the first where several are named. Without one, the CPU is used.
        force_cpu: use the CPU in any case.
        seed: seed of every draw, together with the case's id.
        options: how to sample; default what suits the model.
    """

    def __init__(
        self,
        model: str | Path = "weights/wdm3d",
        cuda_devices: str = "0",
        force_cpu: bool = False,
        *,
        seed: int = 0,
        options: SamplerOptions | None = None,
    ) -> None:
        on_gpu = torch.cuda.is_available() and not force_cpu
        self.model = load(model, pick(f"cuda:{cuda_devices.split(',')[0]}" if on_gpu else "cpu"))
        if len(self.model.config.modalities) != 1:
            raise SynthError(
                f"{model} paints several contrasts together", hint="use the inpaint verb"
            )
        self.seed, self.options = seed, options

    def infer_single(self, t1n: str | Path, mask: str | Path, output_file: str | Path) -> Path:
        """Fill one scan, voided or not, and write it; returns where."""
        return self._fill(case_of(Path(t1n), mask=Path(mask)), Path(output_file))

    def infer_batch(self, data_folder: str | Path, output_folder: str | Path) -> list[Path]:
        """Fill A/A-t1n-voided.nii.gz for each A into output_folder/A.nii.gz; returns the files.

        Finished cases are skipped. A bad case is logged, the others are done, and it raises at
        the end.
        """
        cases = discover(Path(data_folder))
        require_unique(cases)
        targets = {case.id: Path(output_folder) / f"{case.id}.nii.gz" for case in cases}

        def work(case: Case) -> str:
            return str(self._fill(case, targets[case.id]))

        failed = run_cases(cases, work, lambda case: [Output(path=targets[case.id])])
        if failed:
            raise SynthError(
                f"{failed} of {len(cases)} cases could not be filled",
                hint="the log says why; `synth check` examines the folder",
            )
        return list(targets.values())

    def _fill(self, case: Case, target: Path) -> Path:
        image = scans_of(case, self.model.config.modalities)
        mask = hole_of(case, image)
        result = inpaint(
            image, mask, model=self.model, seed=self.seed, options=self.options, name=case.id
        )
        return result.image.save(target)
