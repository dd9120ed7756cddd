"""A demo cohort of convincing brains with tumours, made from the MNI152 maps without a download.

anatomy → tumour → scanner: one person's head, a lesion that displaces it, and what four contrasts
at one of two hospitals show of both. `cohort` writes them in the challenge's layout.
"""

from synth.phantom.cohort import FILES, Phantom, case_id, make_phantom, write_cohort

__all__ = ["FILES", "Phantom", "case_id", "make_phantom", "write_cohort"]
