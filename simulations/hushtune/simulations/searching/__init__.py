"""The search for settings, and what choosing among them costs."""
