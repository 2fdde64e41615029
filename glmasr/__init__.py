"""GLM-ASR in plain PyTorch."""
