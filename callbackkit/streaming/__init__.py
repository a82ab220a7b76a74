"""The tokens of one run, from its nodes and tools to any number of readers."""
