"""The libraries compared, each in the configuration that isolates best; one file for each."""
