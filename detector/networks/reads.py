"""Where a transformer is read that nobody said it of."""


def usual_reads(depth: int, prefix: bool) -> tuple[list[tuple[int, str]], int]:
    """Where a transformer of so many blocks is read, and the block of the map.

    The class token after a third, a half, two thirds and five sixths of the blocks, and the mean of
    the patches after the half and at the end; where there is no class token, the mean everywhere.
    """
    third, half, two, end = (
        max(round(depth * part) - 1, 0) for part in (1 / 3, 1 / 2, 2 / 3, 5 / 6)
    )
    if not prefix:
        return [(block, "mean") for block in sorted({third, half, two, end})], two
    reads = [(third, "cls"), (half, "cls"), (half, "mean"), (two, "cls"), (end, "cls")]
    return [*reads, (end, "mean")], two
