"""Chats: OpenAI's chat completions."""
