"""Mesa-Extrapolation: how a prompt is split, and how it is fed in chunks."""
