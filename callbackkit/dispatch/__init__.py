"""Who listens, and running them."""
