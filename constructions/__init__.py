"""Weave functions and the theorems on length extrapolation as toy transformers with hand-built weights."""
