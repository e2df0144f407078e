"""What a GPU is asked to do: launches, bytes moved, waits of the host, memory that is alive."""

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Counts:
    """Launches and bytes by the kernel's name; waits by the call that waits; bytes alive, now and at most."""

    launches: Counter = field(default_factory=Counter)
    bytes: Counter = field(default_factory=Counter)
    waits: Counter = field(default_factory=Counter)
    live: int = 0
    peak: int = 0


class Meter:
    """The counts since the last `reset`."""

    def __init__(self):
        self.counts = Counts()
        self.fusing = False  # inside a fused function, which is one launch in all

    def launch(self, name, reads=(), writes=()):
        """One kernel that reads and writes these NumPy arrays, each number of their memory once."""
        if not self.fusing:
            self.counts.launches[name] += 1
            self.counts.bytes[name] += sum(touched(array) for array in (*reads, *writes))

    def wait(self, what):
        """The host waits until the GPU has done everything."""
        self.counts.waits[what] += 1

    def reset(self):
        """Start again from zero; what is alive stays so."""
        self.counts = Counts(live=self.counts.live, peak=self.counts.live)


METER = Meter()
BLOCK = 512  # bytes: CuPy's memory pool rounds up to these


class Memory:
    """A piece of the GPU's memory: alive as long as an array refers to it."""

    def __init__(self, size):
        self.size = 0 if METER.fusing else -(-size // BLOCK) * BLOCK  # in a fused function results stay in registers
        METER.counts.live += self.size
        METER.counts.peak = max(METER.counts.peak, METER.counts.live)

    def __del__(self):
        METER.counts.live -= self.size


def touched(array):
    """Bytes of memory that a kernel moves to read or write all of a NumPy array once: broadcast numbers count once."""
    if not array.size:
        return 0
    span = array.itemsize + sum((n - 1) * abs(stride) for n, stride in zip(array.shape, array.strides, strict=True))
    return min(array.nbytes, span)


@contextmanager
def counting():
    """Yields `Counts` of what is done inside."""
    METER.reset()
    try:
        yield METER.counts
    finally:
        METER.reset()
