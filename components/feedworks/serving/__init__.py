"""What every service shares: batching, limits on bodies, counters, and a load generator."""
