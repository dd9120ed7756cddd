"""The comparison of trainings with and without synthetic data."""
