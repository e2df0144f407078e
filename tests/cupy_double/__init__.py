"""A stand-in for CuPy that runs on the CPU: as strict as CuPy, and it counts what a GPU would be asked to do.

No conversion happens unasked: NumPy arrays are refused, results are arrays even if 0-d, only
`.get()` and its like bring numbers to the host, and each of these counts as a wait. Functions have
CuPy's own signatures, which a test compares with the installed CuPy's. What is not here raises
NotImplementedError, so that nothing is counted wrong silently.

    meter.py      launches, bytes, waits and live memory
    array.py      the array class
    ufuncs.py     elementwise functions, and `fuse`
    functions.py  everything else
    stand_in.py   puts all of it in the place of `cupy` while a `with` block lasts

The counts are those of a model of CuPy 14.2: one launch per elementwise function, reduction, copy
and matrix product, and the copies that CuPy's matrix products and concatenation make. No GPU was
used to confirm it.
"""

from cupy_double.meter import METER, Counts, counting
from cupy_double.stand_in import in_place_of_cupy

__all__ = ["METER", "Counts", "counting", "in_place_of_cupy"]
