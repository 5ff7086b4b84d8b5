"""PASCAL VOC 2012: a devkit to a sample store, and the doctor's look at either.

    python datasets/voc2012/prepare.py --devkit VOCdevkit --out STORE      make a store
    python datasets/voc2012/prepare.py --devkit VOCdevkit --check          report only
    python datasets/voc2012/prepare.py --out STORE --check                 checksums of a finished store

Exit status: 0 sound, 2 bad input, 3 done but something was set aside (it is named).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from pathlib import Path

from seedbed.data import open_store
from seedbed.data.card import Card
from seedbed.data.doctor import Report, examine_devkit, prepare
from seedbed.progress import Progress
from seedbed.types import UserError

CARD = Path(__file__).resolve().with_name("card.toml")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devkit", type=Path, metavar="DIR", help="VOCdevkit, or the folder VOC2012 in it")
    parser.add_argument("--out", metavar="STORE", help="the sample store")
    parser.add_argument("--check", action="store_true", help="look, say what is wrong, and write nothing")
    parser.add_argument(
        "--difficult",
        choices=("present", "absent"),
        default="present",
        help="what an object marked difficult does to its class label (default: present, as the official label lists)",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="threads that decode (default: the processors, at most 8)")
    given = parser.parse_args(arguments)
    if given.devkit is None and not (given.check and given.out):
        parser.error("give --devkit DIR, or --out STORE --check")
    if given.out is None and not given.check:
        parser.error("give --out STORE, or --check for a report only")
    if given.workers is not None and given.workers < 1:
        parser.error("--workers must be at least 1")
    return given


def main(arguments: list[str]) -> int:
    given = parse(arguments)
    if given.devkit is None:
        return check_store(given.out)
    card, how = Card.read(CARD), {"difficult": given.difficult, "workers": given.workers, "progress": Progress()}
    if given.check:
        return told(examine_devkit(given.devkit, card, **how))
    report = prepare(given.devkit, card, Path(given.out), **how)
    status = told(report)
    size = sum(path.stat().st_size for path in Path(given.out).iterdir())
    print(f"store: {given.out} ({len(open_store(given.out)):,} pictures, {size / 1e6:,.0f} MB, {report.seconds:.1f} s)")
    return status


def told(report: Report) -> int:
    print(report.text())
    if report.set_aside:
        print(f"{len(report.set_aside)} set aside, see above: mend the devkit, or go on without", file=sys.stderr)
    return 3 if report.set_aside else 0


def check_store(path: str) -> int:
    began = time.perf_counter()
    store = open_store(path)
    problems = 0
    for ident, problem in store.verify():
        problems += 1
        print(f"  {ident}: {problem}")
    splits = ", ".join(f"{name} {n:,}" for name, n in store.info.splits.items())
    print(f"{path}: {store.info.dataset}{', a subset' if store.info.subset else ''}; {len(store):,} pictures; {splits}")
    print(f"{'damaged: ' + str(problems) if problems else 'sound'} ({time.perf_counter() - began:.1f} s)")
    if problems:
        raise UserError(
            f"{problems} damaged in {path}, named above", file=path, field="--out", remedy="make the store again, or copy it again"
        )
    return 0


def refused(error: OSError) -> str:
    """What the file system says, in the documented form."""
    what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    return UserError(what, file=error.filename, remedy="see that the file is there, and that you may read it").text()


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (UserError, OSError) as error:
        if os.environ.get("SEEDBED_DEBUG") == "1":
            traceback.print_exc()
        print(error.text() if isinstance(error, UserError) else refused(error), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
