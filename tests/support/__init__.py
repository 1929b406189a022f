"""Helpers of the tests: models, engines, servers, processes, numerics and waiting. pytest collects nothing here."""
