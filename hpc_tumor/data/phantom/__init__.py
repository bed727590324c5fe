"""Make datasets of made-up scans and images, laid out as the real ones."""
