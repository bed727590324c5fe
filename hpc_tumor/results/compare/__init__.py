"""Compare runs: results in; entries with intervals, paired tests, ranks and conclusions out.

Imported by cli/ and the rest of results/.
"""
