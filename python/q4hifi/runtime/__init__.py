"""Running models on the CPU: tokenizer, chat templates, forward pass, text generation."""
