"""`python -m demos`: run all demos, or some by name, and leave their pictures and an index page in a folder.

    python -m demos                         all, about 8 minutes on two cores
    python -m demos toy texp --quick        those whose names contain one of the words, in small
    python -m demos --gallery               all, and renew the gallery of the README
    python -m demos texp --data fashion-mnist --path /usr/share/datasets/fashion-mnist       on other images; hours
"""

import argparse
import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tqdm import tqdm

HERE = Path(__file__).resolve().parent
SCRIPTS = sorted(HERE.glob("[0-9]*.py"))
SKIPPED = 77  # as in lab.py: the exit status of a demo that lacks a library
README, GALLERY = HERE.parent / "README.md", HERE.parent / "docs" / "gallery"
BEGIN, END = "<!-- gallery: written by python -m demos --gallery -->\n", "<!-- end of gallery -->\n"

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>minibn: demos</title>
<style>body {{ font: 1rem/1.5 sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff }}
img {{ width: 100%; min-width: 40rem; height: auto }} section {{ margin: 3rem 0 }}
section a {{ display: block; overflow-x: auto }}
.no {{ color: #b00; font-weight: bold }}
td {{ vertical-align: top; padding: .2rem .6rem .2rem 0 }} small {{ color: #666 }}</style></head>
<body><h1>minibn: demos</h1>
<p>Li &amp; Arora, <i>An Exponential Learning Rate Schedule for Deep Learning</i> (ICLR 2020), claim by claim.</p>
{sections}</body></html>
"""


def main(arguments=None):
    """Run the chosen demos, each as a script of its own; returns 0 if every claim holds."""
    parser = argparse.ArgumentParser(prog="python -m demos", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    names = "\n".join(script.stem for script in SCRIPTS)
    parser.add_argument("names", nargs="*", metavar="name", help=f"part of the name of a demo:\n{names}")
    parser.add_argument("--quick", action="store_true", help="smaller versions, of some seconds each")
    parser.add_argument("--output", type=Path, default=Path("results/demos"), help="folder for pictures and index.html")
    parser.add_argument("--gallery", action="store_true", help="renew the small pictures and captions in the README")
    parser.add_argument("--data", choices=["digits", "cifar10", "fashion-mnist"], default="digits", help="images")
    parser.add_argument("--path", help="folder or archive of the images, if they are not the digits")
    parser.add_argument("--no-checksum", action="store_true", help="the images need not be the original files")
    flags = parser.parse_args(arguments)
    if unknown := [name for name in flags.names if not any(name in s.stem for s in SCRIPTS)]:
        parser.error(f"no demo has {unknown[0]!r} in its name; there are {', '.join(s.stem for s in SCRIPTS)}")
    if flags.gallery and (flags.quick or flags.names or flags.path):
        parser.error("--gallery needs all demos in full, on the digits: leave out --quick, --path and names")
    if (flags.data == "digits") != (flags.path is None):
        parser.error(f"--data {flags.data} {'needs' if flags.path is None else 'takes no'} --path")
    chosen = [s for s in SCRIPTS if not flags.names or any(name in s.stem for name in flags.names)]
    if flags.path:
        chosen = [s for s in chosen if "lab.images" in s.read_text(encoding="utf-8")]  # the others are about the digits
        if not chosen:
            parser.error("these demos take no other images than the digits")
    failed, skipped = [], []
    for script in tqdm(chosen, desc="demos"):
        print(f"\n== {script.stem}", flush=True)
        verdict = flags.output / f"{script.stem}.json"
        verdict.unlink(missing_ok=True)
        command = [sys.executable, str(script), "--output", str(flags.output), *(["--quick"] if flags.quick else [])]
        command += ["--data", flags.data, "--path", flags.path] if flags.path else []
        command += ["--no-checksum"] if flags.no_checksum else []
        path = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))  # minibn need not be installed
        status = subprocess.run(command, env={**os.environ, "PYTHONPATH": path, "MPLBACKEND": "agg"}).returncode
        if status:
            (skipped if status == SKIPPED else failed).append(script.stem)
    verdicts = {s.stem: json.loads(file.read_text(encoding="utf-8")) for s in SCRIPTS
                if (file := flags.output / f"{s.stem}.json").exists()}
    (flags.output / "index.html").write_text(index(verdicts), encoding="utf-8")
    rest = "".join(f", {what} {', '.join(names)}" for what, names in (("not", failed), ("skipped", skipped)) if names)
    print(f"\n{len(chosen) - len(failed) - len(skipped)} of {len(chosen)} demos hold{rest}: see {flags.output}/index.html")
    if flags.gallery and not failed and not skipped:
        GALLERY.mkdir(parents=True, exist_ok=True)
        for name in verdicts:
            shutil.copy(flags.output / f"{name}-small.png", GALLERY / f"{name}.png")
        text = README.read_text(encoding="utf-8")
        text = re.sub(f"{BEGIN}.*{END}", lambda _: BEGIN + gallery(verdicts) + END, text, flags=re.DOTALL)
        README.write_text(text, encoding="utf-8")
    return 1 if failed else 0


def index(verdicts):
    """The index page: a section for each {name: what `lab.finish` wrote}."""
    sections = []
    for name, verdict in verdicts.items():
        rows = "".join(f"<tr><td>{'✓' if c['holds'] else '<span class=no>✗</span>'}</td><td>{html.escape(c['claim'])}<br>"
                       f"<small>measured: {html.escape(c['measured'])}</small></td></tr>" for c in verdict["claims"])
        title = html.escape(verdict["title"])
        sections.append(f'<section id="{name}"><h2>{title}</h2><a href="{name}.png"><img src="{name}.png" alt="{title}"></a>'
                        f"<table>{rows}</table><small>demos/{name}.py, {verdict['seconds']:g} s</small></section>\n")
    return PAGE.format(sections="".join(sections))


def gallery(verdicts):
    """Small pictures with captions, as Markdown."""
    entries = []
    for name, verdict in verdicts.items():
        claims = "\n".join(f"- {c['claim'][0].upper()}{c['claim'][1:]}: *{c['measured']}*." for c in verdict["claims"])
        entries.append(f"\n**[{verdict['title'].rstrip('.')}](demos/{name}.py)**\n\n"
                       f"![{verdict['title'].rstrip('.')}](docs/gallery/{name}.png)\n\n{claims}\n")
    return "".join(entries) + "\n"


if __name__ == "__main__":
    sys.exit(main())
