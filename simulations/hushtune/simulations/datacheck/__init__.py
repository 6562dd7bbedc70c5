"""What is wrong with data, before anything trains: ``hushtune data check``."""
