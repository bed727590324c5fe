"""What all figures share: sheets, axes, palettes, text, and rendering as SVG and PNG."""
