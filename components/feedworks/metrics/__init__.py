"""Metrics as pure functions on numpy arrays: ranking, codebooks, diversity; and the latency harness."""
