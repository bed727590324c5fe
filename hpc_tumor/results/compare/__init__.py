"""Compare runs: results in, entries with intervals, tests, ranks and conclusions out."""
