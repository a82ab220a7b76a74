"""The probes: small programs that tell how a library takes something that goes wrong."""
