"""What an institution installs and reviews: local training under differential privacy."""
