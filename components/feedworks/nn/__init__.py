"""Torch parts that more than one paper uses."""
