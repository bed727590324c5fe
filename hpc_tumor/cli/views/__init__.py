"""Draw what commands found out: tables and lines of text, one module a noun."""
