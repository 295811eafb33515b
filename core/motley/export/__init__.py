"""Finished models as files that leave the system: packed with a description, ONNX, safetensors."""
