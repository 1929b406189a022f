"""Texts and token ids, and the prompts that chats become: llama-server's endpoints."""
