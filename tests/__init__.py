"""Tests of the packages; patients are marked with a key of their own."""

import os
from pathlib import Path

os.environ["SYNTH_PATIENT_KEY"] = str(Path(__file__).parent / "golden" / "patient.key")
