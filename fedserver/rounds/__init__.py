"""The round engine: every decision about runs, rounds and tasks. Knows no gRPC."""
