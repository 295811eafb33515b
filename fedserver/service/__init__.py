"""The gRPC services: they check, translate and hand on; they decide nothing about rounds."""
