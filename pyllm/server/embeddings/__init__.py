"""Vectors of texts, and documents ranked for a query."""
