"""Write a comparison: CSV, JSON, Markdown, LaTeX, figures and the report; complete or not at all. Imported by cli/."""
