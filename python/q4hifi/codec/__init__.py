"""Weights as arrays: rows encoded and decoded by the Rust core, and model files whose tensors are whole."""
