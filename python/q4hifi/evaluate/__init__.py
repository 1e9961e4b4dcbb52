"""Measuring models on a text: perplexity, KL divergence, speed, comparisons, importance matrices."""
