"""`kernels.plain()` runs the reference itself, for a block or a process: for a debugger, and with a check of its own."""

import inspect
import sys

import numpy as np
import pytest

from minibn import kernels, nn
from minibn.kernels import cpu, reference


def test_plain_uses_the_reference_and_ends_with_its_block():
    x = np.ones((1, 2))
    assert kernels.of(x) is cpu
    with kernels.plain():
        assert kernels.of(x) is reference
        assert kernels.is_plain()
    assert kernels.of(x) is cpu


def test_an_environment_variable_makes_a_process_plain(monkeypatch):
    import subprocess

    code = "import minibn; print(minibn.kernels.is_plain())"
    for value, expected in {"1": "True", "0": "False", "": "False"}.items():
        monkeypatch.setenv("MINIBN_PLAIN", value)
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == expected


def test_a_debugger_is_two_calls_from_the_equation():
    """From a breakpoint in `Conv2d.backward` to the line `dx[pixels] += dy @ w[u, v, ...].T`."""
    conv = nn.Conv2d(2, 3, 3, padding=1, rng=np.random.default_rng(0), dtype="float64")
    lines, first = inspect.getsourcelines(reference.correlate_backward)
    target = first + next(i for i, line in enumerate(lines) if "dx[pixels] += dy @ w[u, v, ...].T" in line)
    depths = []

    def trace(frame, event, argument):
        if event == "line" and frame.f_lineno == target and frame.f_code.co_filename == reference.convolution.__file__:
            depth, caller = 0, frame
            while caller.f_code is not nn.Conv2d.backward.__code__:
                depth, caller = depth + 1, caller.f_back
            depths.append(depth)
        return trace

    with kernels.plain():
        y = conv(np.ones((1, 4, 4, 2)))
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            conv.backward(y)
        finally:
            sys.settrace(before)
    assert len(depths) == 9  # once per tap
    assert max(depths) <= 2


def test_an_array_changed_between_forward_and_backward_is_noticed_in_plain():
    for layer in (nn.ReLU(), nn.MaxPool2d(1), nn.BatchNorm(2), nn.Conv2d(2, 2, 1, rng=np.random.default_rng(0))):
        x = np.random.default_rng(0).standard_normal((3, 2, 2, 2)).astype("float32")
        with kernels.plain():
            y = layer(x)
            layer.backward(np.ones_like(y))
            y = layer(x)
            (y if isinstance(layer, nn.ReLU) else x)[0, 0, 0, 0] = 7
            with pytest.raises(RuntimeError, match="changed in place"):
                layer.backward(np.ones_like(y))
