"""GGUF files: header, metadata, shards; reading and writing tensors as bytes. Knows nothing of models."""
