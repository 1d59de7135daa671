"""The processes that learn: fit, evaluate, and the jobs that run on a schedule."""
