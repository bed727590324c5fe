"""Draw the common elements of figures: sheets, axes, palettes and text in, SVG and PNG out.

Imported by results/figures.
"""
