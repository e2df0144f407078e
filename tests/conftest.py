"""Settings for all tests: hypothesis without time limits (a slow machine is not a failure), GPU tests where there is one."""

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("minibn", deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("minibn")


def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("gpu")]
    reason = _why_no_gpu() if marked else None
    for item in marked:
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


def _why_no_gpu():
    """None if CuPy can allocate, else what stands in the way."""
    try:
        import cupy

        cupy.zeros(1)
    except Exception as error:  # CuPy's errors without a driver are of many types
        return f"needs CuPy and a GPU: {type(error).__name__}: {error}".splitlines()[0]
    return None
