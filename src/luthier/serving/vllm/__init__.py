"""Serving through vLLM: commands, files for Docker and Kubernetes."""
