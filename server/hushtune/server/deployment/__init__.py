"""The coordinator's end of a federation between machines: its folder, its server and its runs."""
