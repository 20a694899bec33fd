"""What runs, what ran and why: read from the request log and from what the scheduler is told, never measured twice."""
