"""Every error of `optim`, `equivalence` and `invariance` says in full what was given, what was needed, what to do."""

import ast
from pathlib import Path

import pytest
from refused_by_equivalence import EQUIVALENCE
from refused_by_invariance import INVARIANCE
from refused_by_optim import OPTIM

from minibn import equivalence, invariance, kernels, optim

REFUSED = [
    *OPTIM, *EQUIVALENCE, *INVARIANCE,
    (lambda: kernels.threads(0).__enter__(), ValueError,
     "threads: count must be a whole number of at least 1, got 0"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED, ids=[message[:40] for *_, message in REFUSED])
def test_the_message_in_full(call, error, message):
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value) == message


def test_every_refusal_of_the_source_is_in_the_table():
    missing = {(file, node.lineno): node for package in (optim, equivalence, invariance)
               for file in Path(package.__file__).parent.glob("*.py")
               for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Raise)}
    assert len(missing) > 40
    for call, error, _ in REFUSED:
        with pytest.raises(error) as raised:
            call()
        last = raised.traceback[-1]
        for (file, line), node in list(missing.items()):
            if file == Path(last.path) and line <= last.lineno + 1 <= node.end_lineno:
                del missing[file, line]
    assert not missing, sorted(missing)
