"""Chat: messages through the template of a model, tools, reasoning, and answers that are taken apart again."""
