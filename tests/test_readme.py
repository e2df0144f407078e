"""The README's example runs."""

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_the_first_example_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    scope = {}
    exec(code, scope)
    assert scope["history"]["loss"][-20:].mean() < 0.3
    assert "[0.105" in capsys.readouterr().out
