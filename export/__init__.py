"""The training pipeline: paintings in, a verified ONNX model with its card in the store out."""
