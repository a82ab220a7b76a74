"""Where sessions keep their events, and what deliveries they still owe."""
