"""Chats in the shape of Anthropic's API."""
