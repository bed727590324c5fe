"""Watch the ranks: progress and its loss, steps that are not finite, memory, and what a start used."""
