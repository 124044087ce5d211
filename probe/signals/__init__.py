"""Signals: what one pass shows of a model that might tell that it fails, all through the same interface."""
