"""Format results of commands as tables and lines, one module per subject. Imported by cli/."""
