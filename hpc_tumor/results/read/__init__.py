"""Read what runs left: run directories in, typed results out. What is damaged is named, never guessed."""
