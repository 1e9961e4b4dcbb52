"""Measurements of models: perplexity, KL divergence, speed, comparisons, importance matrices."""
