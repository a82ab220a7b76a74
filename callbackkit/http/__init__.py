"""Runs, sessions and events over HTTP, one file per framework."""
