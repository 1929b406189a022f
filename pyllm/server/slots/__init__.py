"""The places where texts are computed: what is in them, and how it is saved, restored and erased."""
