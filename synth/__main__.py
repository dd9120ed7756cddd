"""`python -m synth VERB`."""

import os
import sys
from pathlib import Path

# `python -m` looks for modules in the current folder first: a scan's folder may hold a numpy.py.
if sys.path[:1] in ([""], [os.getcwd()]) and Path.cwd() != Path(__file__).resolve().parents[1]:
    del sys.path[0]

from synth.cli import main

sys.exit(main())
