"""Probe language models past their training window, under any position scheme."""
