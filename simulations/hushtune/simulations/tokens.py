"""Rows as they are read and as tokens, for ``hushtune data preview``."""
