"""Completions and infilling by llama-server's own names."""
