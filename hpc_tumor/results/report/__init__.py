"""Build the report: one HTML page that needs no network, and a server of it."""
