"""Made-up patients: brains with tumours, from the MNI152 maps, without a download.

anatomy → tumour → scanner: one person's head, a lesion that displaces it, and what four contrasts
at one of two hospitals show of both. `cohort` writes them in the challenge's layout.
"""
