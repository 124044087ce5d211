"""Runs of a model under several schemes: record, score, judge, and leave a run folder."""
