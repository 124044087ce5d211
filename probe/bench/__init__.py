"""Time and memory of every scheme, always beside the stock model on the same weights in the same run."""
