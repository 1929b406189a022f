"""Many requests on one context: continuous batching, shared prefixes, preemption."""
