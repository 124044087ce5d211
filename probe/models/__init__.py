"""Loading models: embedded, from folders and hubs, random ones for benchmarks."""
