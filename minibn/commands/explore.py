"""`minibn explore`: a page with sliders."""

from minibn import explore
from minibn.flags import Parser, number


def run(port: int, headless: bool) -> int:
    """Open a page with sliders on which a usual and a converted run train side by side. It needs no internet."""
    explore.serve(port, headless=headless)
    return 0


def flags() -> Parser:
    """Its flags."""
    parser = Parser("minibn explore", run.__doc__)
    parser.flag("--port", "of this computer; 0 takes a free one", kind=number(int, 0, 65535), default=explore.PORT)
    parser.flag("--headless", "do not open a browser", yes=True)
    return parser
