"""What a file says of its own making, read without looking at its pixels and without torch."""
