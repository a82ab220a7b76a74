"""Events on their way to transports, again until it worked or is a dead letter."""
