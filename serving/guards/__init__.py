"""What stands before a request: what its head says, whether it may come in, how long it may take."""
