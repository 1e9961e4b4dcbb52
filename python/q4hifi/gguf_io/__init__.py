"""GGUF files: headers, metadata and shards. Tensors are read and written as bytes, whatever they mean."""
