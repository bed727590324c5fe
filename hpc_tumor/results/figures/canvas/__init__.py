"""Paper and pens that all figures share: sheets, axes, palettes, words, and files as SVG and PNG."""
