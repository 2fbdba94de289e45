"""Memory between the stages of a recipe, as the system sees it."""

import subprocess
import sys

import pytest

PROGRAM = """
import numpy
from chatwright import memory

def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) // 256  # MiB of pages of 4 KiB

memory.keep()
numbers = [numpy.ones(100_000 + 1000 * i) for i in range(300)]
wall = numpy.ones(1000)  # what lies above holds down what was freed below it
del numbers
kept = held()
memory.give_back()
print(kept, held())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="this is about glibc")
def test_what_was_kept_is_given_back():
    kept, left = map(int, subprocess.check_output([sys.executable, "-c", PROGRAM], text=True).split())
    assert kept > 300 and left < kept / 3
