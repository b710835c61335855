"""What is counted, where all workers can see it, and how Prometheus is told."""
