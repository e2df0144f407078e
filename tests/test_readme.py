"""The README's example runs."""

import re
from pathlib import Path

from minibn.__main__ import main

README = Path(__file__).parent.parent / "README.md"


def test_the_first_example_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    scope = {}
    exec(code, scope)
    assert scope["history"]["loss"][-20:].mean() < 0.4
    assert "converted: conv1.weight" in capsys.readouterr().out


def test_its_minibn_commands_are_understood(capsys):
    commands = re.findall(r"^    minibn (.*)$", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        assert main(command.split()) == 0
    assert "independent rescaling symmetries" in capsys.readouterr().out
