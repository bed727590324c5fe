"""Draw what commands found out, as tables and lines; one module a noun.

In: typed results of other rooms. Out: tables for `console.out`. Imported by the commands only.
"""
