"""Conversations with a Llama: each with a name, its messages, and the KV cache of what was said."""

from pyllm.conversation.conversation import Conversation
from pyllm.conversation.methods import ConversationMethods

__all__ = ["Conversation", "ConversationMethods"]
