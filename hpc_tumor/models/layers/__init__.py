"""Layers that several networks share, and checks of what they are given. They know no settings and no ranks."""
