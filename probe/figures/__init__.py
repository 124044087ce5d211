"""Figures, as plotly objects made from run folders."""
