"""Importance matrices: their files, sums, statistics, and whether they fit a model."""
