"""The report of a study: from its results to pictures, tables and one page."""
