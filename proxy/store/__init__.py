"""State that outlives a request: the counters of quotas."""
