"""Patients behind images: two small pictures of each image in, slice and patient of the Cheng set out.

`reference` reads the shipped descriptors of the 3,064 slices and names their patients; `recognise` compares images with
them. Imported by cli/, prediction/ and the rest of data/.
"""
