"""GGUF files, llama.cpp that plays them, and Ollama's template."""
