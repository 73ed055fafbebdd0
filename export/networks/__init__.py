"""The networks that `python -m export train` trains."""
