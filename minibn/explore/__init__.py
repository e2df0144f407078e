"""The explorer: a page with sliders on which a usual run and its converted form train side by side.

    minibn explore                      opens it in the browser (pip install "minibn[explore]" brings marimo)
    minibn explore --port 8000 --headless

`serve` does the same from Python. The page, `app`, computes with `runs`, which asks `equivalence`
and `monitor`; `toys` has the two losses that it trains on. It needs no internet.
"""

import importlib.util
import socket
import threading
import webbrowser
from pathlib import Path
from typing import Any

from minibn import arguments

PORT = 2719


def serve(port: int = PORT, *, headless: bool = False) -> None:
    """Serve the page on this computer only, until Ctrl-C.

    Args:
        port: of 127.0.0.1; 0 takes a free one.
        headless: do not open a browser.

    Raises:
        ImportError: marimo is not installed.
        OSError: the port is taken.
        ValueError: there is no such port.
    """
    if arguments.whole("port", port, 0) > 65535:
        raise ValueError(f"port must be from 0 to 65535, got {port}")
    if importlib.util.find_spec("marimo") is None:
        raise ImportError("the explorer needs marimo; install it with: pip install marimo")
    import marimo
    import uvicorn

    page: Any = marimo.create_asgi_app(quiet=True).with_app(path="", root=str(Path(__file__).with_name("app.py"))).build()
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError as error:
        listener.close()
        raise OSError(f"port {port} of this computer cannot be used ({error.strerror}); give another one with --port") from error
    listener.listen()
    with listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        print(f"The explorer is at {address} (Ctrl-C stops it)", flush=True)
        if not headless:
            threading.Timer(1.0, webbrowser.open, [address]).start()
        try:
            uvicorn.Server(uvicorn.Config(page, log_level="warning", timeout_graceful_shutdown=1)).run(sockets=[listener])
        finally:
            for route in page.routes:  # or the threads of the open pages would keep this process alive
                route.app.state.session_manager.close_all_sessions()
