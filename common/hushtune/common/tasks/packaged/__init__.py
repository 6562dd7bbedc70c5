"""Real data from pinned packages, a file a family: each package's own format in, rows out."""
