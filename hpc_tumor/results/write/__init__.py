"""Write a comparison to files: CSV, JSON, Markdown, LaTeX, figures and the report."""
