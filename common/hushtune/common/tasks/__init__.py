"""Tasks: labelled data, how it is read, cleaned, split and spread over sites, and named assets."""
