"""Soups: the mean of several trainings' weights."""
