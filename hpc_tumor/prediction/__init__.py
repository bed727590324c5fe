"""Apply a trained run to new scans or images: files in; labels, classes and scores out; or the network as ONNX.

Imported by the commands.
"""
