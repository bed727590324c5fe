"""Draw on paper: sheets, scales, palettes and files shared by all figures."""
