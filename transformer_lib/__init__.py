"""Attention and the Transformer, exported from the chapters of The Executable Transformer."""

__version__ = "0.1.0"

import lazy_loader

# The names are in __init__.pyi. A module is loaded when it, or a name of it, is first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
