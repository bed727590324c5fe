"""Build the report: one HTML page that needs no network; `serve` shows it through a tunnel."""
