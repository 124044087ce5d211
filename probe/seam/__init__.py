"""Where a scheme takes hold of a model: positions, attention, the key-value cache, chunked prefill."""
