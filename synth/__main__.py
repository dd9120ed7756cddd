"""`python -m synth VERB`."""

import sys

from synth.cli import main

sys.exit(main())
