"""The kinds of generator that are trained here, a file each, and what they are made of."""
