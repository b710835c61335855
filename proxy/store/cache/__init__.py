"""Where answers are kept: in the memory of one process, or in a Redis for all."""
