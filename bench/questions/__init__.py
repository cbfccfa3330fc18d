"""The questions: one module each, with a `BENCH`."""
