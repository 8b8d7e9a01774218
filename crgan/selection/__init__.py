"""Choosing the best model of a pool without labels."""
