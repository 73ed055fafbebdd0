"""Measurements of this machine: networks side by side, and what the service costs over them."""
