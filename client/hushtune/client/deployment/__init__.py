"""A site at its own institution: its folder, its processes, and what it checks before it joins."""
