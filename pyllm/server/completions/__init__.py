"""Texts that go on: OpenAI's completions."""
