"""Files of weights, in and out: PyTorch's, safetensors, and what stands in the place of a run."""
