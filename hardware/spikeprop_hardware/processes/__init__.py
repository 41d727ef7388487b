"""Lava processes. Lava imports every file of this folder when it looks for process models, so nothing else lives here."""
