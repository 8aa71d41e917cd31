"""What a detector is made of: the architectures by name, their networks, and weights files."""
