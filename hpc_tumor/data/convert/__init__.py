"""Convert raw cases to a store: a reader in, a complete store out; resumable.

`prepare` lists, converts and commits; `case` converts one case; `workers` are the processes; `target` is the store's
folder. Imported by cli/, cluster/ and prediction/.
"""
