"""One file per framework, each with its extra."""
