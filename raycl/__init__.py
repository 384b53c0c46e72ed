"""raycl: continual learning of large language models on Ray."""

__version__ = "0.1.0"
