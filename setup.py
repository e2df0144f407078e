"""The package's description: the README with links that work outside the repository. All else is in setup.cfg."""

import re
from pathlib import Path

from setuptools import setup

HOME = "https://github.com/minibn/minibn"
LINK = r"(?:[a-z]+:|#|//)"  # what is no path in the repository


def absolute(text: str) -> str:
    """Markdown with absolute addresses in place of paths: pictures as files, all else as pages."""
    text = re.sub(rf"(!\[[^\]]*\]\()(?!{LINK})", rf"\1{HOME}/raw/main/", text)
    text = re.sub(rf"(\]\()(?!{LINK})", rf"\1{HOME}/blob/main/", text)
    text = re.sub(rf"(\bsrc=\")(?!{LINK})", rf"\1{HOME}/raw/main/", text)
    return re.sub(rf"(\bhref=\")(?!{LINK})", rf"\1{HOME}/blob/main/", text)


setup(long_description=absolute(Path(__file__).with_name("README.md").read_text(encoding="utf-8")))
