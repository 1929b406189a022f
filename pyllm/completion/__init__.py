"""Text completion: what :class:`pyllm.Llama` does when it is called."""
