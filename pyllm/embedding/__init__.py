"""How texts become vectors, and how documents are ranked: what :meth:`pyllm.Llama.embed` and its kin are made of."""
