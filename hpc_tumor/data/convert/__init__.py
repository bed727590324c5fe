"""Convert raw cases to a store: a reader in, a store out, complete or not at all, and resumable.

`prepare` lists, converts and commits; `case` converts one; `workers` are the processes; `target` is the folder that
grows. Imported by the commands and by the conversion on a cluster.
"""
