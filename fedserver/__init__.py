"""The Motley server: rounds, aggregation, storage, and the two gRPC services."""
