"""A picture of the explorer's page, for documents, taken with a headless browser:

    python -m minibn.explore.browser docs/explorer.png

Needs marimo, playwright (pip install playwright) and Chromium (apt-get install chromium).
"""

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec


def chromium() -> str | None:
    """Path of the Chromium that playwright can drive; None without Chromium or playwright."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    return found if find_spec("playwright") else None


def picture(file: str, *, width: int = 1200, height: int = 1252) -> None:
    """Start the explorer, open it, and write a PNG of what a window of this size shows.

    Args:
        file: path of the PNG.
        width, height: of the window, in pixels.

    Raises:
        ImportError: there is no Chromium, or no playwright.
    """
    program = chromium()
    if program is None:
        raise ImportError("the picture needs Chromium and playwright: apt-get install chromium, pip install playwright")
    from playwright.sync_api import sync_playwright

    command = [sys.executable, "-m", "minibn", "explore", "--headless", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as driver:
        try:
            assert server.stdout is not None
            address = re.search(r"http://[\d.:]+", server.stdout.readline())
            assert address is not None
            browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": width, "height": height})
            page.goto(address[0])
            page.wait_for_selector("[data-name=gap]", timeout=60_000)
            page.wait_for_timeout(500)
            page.screenshot(path=file)
            browser.close()
        finally:
            server.terminate()


if __name__ == "__main__":
    picture(sys.argv[1])
