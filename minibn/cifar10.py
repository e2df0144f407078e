"""The old name of `minibn.data.cifar10_files`."""

from minibn.data.cifar10_files import ARCHIVES, NAMES, PAGE, read  # noqa: F401
