"""Read what runs left: run directories in, typed results out. Damaged files are named, never guessed."""
