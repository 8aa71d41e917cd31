"""What needs generators and detectors, which may not know each other; only commands import it."""
