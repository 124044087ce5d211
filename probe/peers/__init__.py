"""Our schemes beside their authors' own code: the same weights and tokens through both, and every logit compared."""
