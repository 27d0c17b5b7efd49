"""GGUF files: written from a model and its tokenizer, and run in llama.cpp."""
