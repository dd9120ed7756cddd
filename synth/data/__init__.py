"""Patients on disk and in memory: volumes, cases, splits, preparation."""
