"""Report on a GPU: everything worth knowing of a real one in minutes, in one JSON and one Markdown file.

    __main__ (command) → conductor (a child process a part) → child → the part's module → conductor → report, tables

`plan` lists the parts, the most important first; each value reaches the report as soon as it is measured. Run by
tools/gpu_report.sh; docs/how-to/gpu-report.md describes it.
"""
