"""Seeded damage to files, and what the readers make of it."""
