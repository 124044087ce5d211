"""Loading models, the seam that puts a scheme on one, and the embedded models with their training."""
