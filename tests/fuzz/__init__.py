"""Coverage-guided fuzzing: `python -m tests.fuzz TARGET --seconds N`, from the root of the repository."""
