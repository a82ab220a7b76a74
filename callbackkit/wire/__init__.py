"""Text and bytes to values and back: no await, clock, chance or socket."""
