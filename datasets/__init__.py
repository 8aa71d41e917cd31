"""Where images come from and how a corpus is stored, read, split, audited and degraded."""
