"""Apply a trained run to new scans or images, or export its network as ONNX. Imported by cli/."""
