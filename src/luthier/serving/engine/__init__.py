"""The one thread that computes: requests, scheduling, KV cache, sampling, adapters side by side."""
