"""`python -m demos`: run all demos, or some by name, and leave their pictures and verdicts in a folder.

    python -m demos                         all, about 15 minutes on two cores
    python -m demos toy texp --quick        those whose names contain one of the words, in small
    python -m demos --gallery               all, and renew the pictures and measured claims of the documentation's gallery
    python -m demos texp --data fashion-mnist --path /usr/share/datasets/fashion-mnist       on other images; hours
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tqdm import tqdm

HERE = Path(__file__).resolve().parent
SCRIPTS = sorted(HERE.glob("[0-9]*.py"))
SKIPPED = 77  # as in lab.py: the exit status of a demo that lacks a library
GALLERY = HERE.parent / "docs" / "gallery"

def main(arguments=None):
    """Run the chosen demos, each as a script of its own; returns 0 if every claim holds."""
    parser = argparse.ArgumentParser(prog="python -m demos", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    names = "\n".join(script.stem for script in SCRIPTS)
    parser.add_argument("names", nargs="*", metavar="name", help=f"part of the name of a demo:\n{names}")
    parser.add_argument("--quick", action="store_true", help="smaller versions, of some seconds each")
    parser.add_argument("--output", type=Path, default=Path("results/demos"), help="folder for pictures and verdicts")
    parser.add_argument("--gallery", action="store_true", help="renew the documentation's pictures and claims")
    parser.add_argument("--data", choices=["digits", "cifar10", "fashion-mnist"], default="digits", help="images")
    parser.add_argument("--path", help="folder or archive of the images, if they are not the digits")
    parser.add_argument("--no-checksum", action="store_true", help="the images need not be the original files")
    flags = parser.parse_args(arguments)
    if unknown := [name for name in flags.names if not any(name in s.stem for s in SCRIPTS)]:
        parser.error(f"no demo has {unknown[0]!r} in its name; there are {', '.join(s.stem for s in SCRIPTS)}")
    if flags.gallery and (flags.quick or flags.path):
        parser.error("--gallery needs the demos in full, on the digits: leave out --quick and --path")
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
    rest = "".join(f", {what} {', '.join(names)}" for what, names in (("not", failed), ("skipped", skipped)) if names)
    held = [script.stem for script in chosen if script.stem not in (*failed, *skipped)]
    print(f"\n{len(held)} of {len(chosen)} demos hold{rest}: see {flags.output}")
    if flags.gallery:
        renew_gallery(flags.output, held)
    return 1 if failed else 0


def renew_gallery(output, names):
    """Copy pictures and claims of the named demos from the folder `output` to the documentation; those of others stay."""
    file = GALLERY / "claims.json"
    claims = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for name in names:
        shutil.copy(output / f"{name}-small.png", GALLERY / f"{name}.png")
        verdict = json.loads((output / f"{name}.json").read_text(encoding="utf-8"))
        claims[name] = {"title": verdict["title"].rstrip("."), "claims": [
            {key: claim[key] for key in ("claim", "measured")} for claim in verdict["claims"]]}
    present = {script.stem for script in SCRIPTS}
    claims = {name: claims[name] for name in sorted(claims) if name in present}
    file.write_text(json.dumps(claims, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
