"""The project's facts: one version everywhere, addresses, citation, and a description that works outside the repository."""

import re
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path

import pytest

import minibn
from minibn.__main__ import COMMANDS, main

ROOT = Path(__file__).parent.parent


def described():
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config["metadata"]


def test_one_version_everywhere():
    assert minibn.__version__ == version("minibn") == described()["version"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE)[1] == minibn.__version__
    assert f"## [{minibn.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_every_command_tells_the_version(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([*command, "--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"minibn {minibn.__version__}\n"


def test_the_project_has_addresses():
    addresses = dict(line.split(" = ") for line in described()["project_urls"].strip().splitlines())
    assert {"Source", "Issues", "Changelog"} <= addresses.keys()
    assert all(address.startswith("https://") for address in addresses.values())


def test_the_citation_names_the_software_and_the_paper():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    titles = re.findall(r"^ *-? ?title: (.*)$", text, re.MULTILINE)
    assert titles == ["minibn", "An Exponential Learning Rate Schedule for Deep Learning"]
    for needed in ("cff-version: 1.2.0", "message: ", "authors:", "repository-code: https://", "license: MIT"):
        assert f"\n{needed}" in f"\n{text}"


def test_pictures_and_links_of_the_description_work_outside_the_repository():
    pytest.importorskip("setuptools")  # which puts a distutils of its own in place
    core = pytest.importorskip("distutils.core")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        text = core.run_setup("setup.py", stop_after="init").metadata.long_description
    places = re.findall(r"\]\(([^)\s]*)\)|\b(?:src|href)=\"([^\"]*)\"", text)
    places = [one or other for one, other in places]
    assert len(places) > 10
    assert all(re.match("https?://|#", place) for place in places)
    for page, name in re.findall(r"https://github.com/minibn/minibn/(raw|blob)/main/([^)\s#\"]*)", text):
        assert (ROOT / name).exists(), name
        assert (page == "raw") == name.endswith((".png", ".svg", ".gif", ".jpg")), name
