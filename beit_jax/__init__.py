"""BEiT (arXiv 2106.08254) in JAX and Flax."""

__version__ = '0.1.0'
