"""Weaving where models are served: schemes over the paged cache of a serving engine."""
