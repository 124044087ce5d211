"""Thresholds of hidden states, the failures they predict and the failures measured."""
