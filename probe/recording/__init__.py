"""Record chosen hidden-state dimensions at every position, and keep them in run folders."""
