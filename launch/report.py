"""One page for many evaluations: methods, folds and shots next to each other and to the papers.

python launch/report.py runs/evaluate_* --out runs/comparison
"""

import argparse
import sys
from pathlib import Path

from fss.command import command
from fss.report.comparison_page import compare


@command
def main(argv: list[str] | None = None) -> int:
    """Run the command with the words `argv` (None: those of the process); returns the exit code."""
    parser = argparse.ArgumentParser(prog="launch/report.py", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run directories of launch/evaluate.py")
    parser.add_argument("--out", type=Path, default=Path("runs/comparison"), help="folder of the page")
    arguments = parser.parse_args(argv)
    print(f"report: {compare(arguments.runs, arguments.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
