"""Neural style transfer over HTTP."""

__version__ = "0.1.0"
