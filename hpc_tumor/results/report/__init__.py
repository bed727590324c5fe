"""Build the report, one self-contained HTML page, and serve it through an SSH tunnel. Imported by results/write."""
