"""What may be spent on what comes from outside; apart, since what fetches takes time to import."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an address, and what an archive, may cost."""

    max_bytes: int = 256 * 2**20
    """Of one answer, or of one file in an archive."""
    seconds: float = 60.0
    """From the first question to the last byte, redirects and names included."""
    redirects: int = 5
    allow_private: bool = False
    """Ask private, loopback and link-local addresses, too."""
