"""Barlow Twins (Zbontar et al., ICML 2021, arXiv 2103.03230) in JAX.

Start with `train.py` (the loop), `loss.py` (the objective), `model.py` (the network) and `augment.py`
(the two views). Importing this package loads neither TensorFlow nor PyTorch.
"""

__version__ = "0.1.0"
