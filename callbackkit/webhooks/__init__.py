"""Webhooks: signed, guarded against where they must not go, and the kit of those who receive."""
