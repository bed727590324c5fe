"""Compare runs: results in; entries with intervals, paired tests, ranks and conclusions out."""
