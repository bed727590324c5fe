"""Layers shared by several networks, and checks of their options and inputs. No settings objects, no ranks.

Imported by the rest of models/ and by training/.
"""
