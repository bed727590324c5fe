"""Read raw datasets: folders in, cases with their arrays and a list of files that belong to none out.

`sources` finds the reader that fits; `brats`, `brats_h5`, `brain_mri` and `cheng` are the readers; `clinical` adds the
tables beside them. Imported by cli/, the rest of data/, and prediction/, which reads the same files.
"""
