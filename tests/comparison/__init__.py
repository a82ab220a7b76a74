"""The same probes over callbackkit and its peers (``python -m tests.comparison``)."""
