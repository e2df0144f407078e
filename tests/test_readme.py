"""The README's example runs."""

import re
from pathlib import Path

import pytest

from minibn.__main__ import main

README = Path(__file__).parent.parent / "README.md"


def test_the_first_example_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    scope = {}
    exec(code, scope)
    assert scope["history"]["loss"][-20:].mean() < 0.4
    assert "converted: conv1.weight" in capsys.readouterr().out


def test_its_minibn_commands_are_understood(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = ""
    commands = re.findall(r"^    minibn (.*)$", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        if "cifar10" in command:  # which is not here
            with pytest.raises(SystemExit):
                main(command.split())
            assert "minibn: no CIFAR-10 at cifar-10-binary.tar.gz: it does not exist" in capsys.readouterr().err
        else:
            assert main(command.split()) == 0
            output += capsys.readouterr().out
    assert "independent rescaling symmetries" in output
    assert "12 runs, 0 failed" in output
