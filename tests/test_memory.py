"""Memory that is freed stays with the process."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
if sys.argv[1] == "keep":
    from ganscope.memory import keep_freed_memory
    assert keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(300):
    np.empty(48 * 2**20, np.uint8)[::4096] = 1  # each page once
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_blocks_are_faulted_in_once() -> None:
    found = {}
    for way in ("keep", "give back"):
        done = subprocess.run(
            [sys.executable, "-c", FAULTS, way], capture_output=True, text=True, check=True
        )
        found[way] = int(done.stdout)
    assert found["keep"] < found["give back"] / 4
