"""Importance matrices: their files, sums and statistics, and the check against a model."""
