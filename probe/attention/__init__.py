"""Attention under a scheme: the dense reference and the merged pieces."""
