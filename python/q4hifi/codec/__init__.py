"""Weights as arrays: rows encoded and decoded by the Rust core, and models whose tensors are decoded."""
