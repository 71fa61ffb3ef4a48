"""What is found: the walk over the operations, channels and groups, and what holds channels back."""
