"""The LoRA adapters of the server: which there are, and with which scales."""
