"""Publish wandb's views of a project: the charts of every job, over all its runs.

python launch/dashboard.py --print                      what there is to see, without network
python launch/dashboard.py --entity me --project fss
"""

import argparse
import sys

from fss.command import command
from fss.tracking.dashboard import markdown, publish


@command
def main(argv: list[str] | None = None) -> int:
    """Run the command with the words `argv` (None: those of the process); returns the exit code."""
    parser = argparse.ArgumentParser(prog="launch/dashboard.py", description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--entity", help="wandb user or team that the project belongs to")
    what.add_argument("--print", action="store_true", help="only list the charts, as Markdown")
    parser.add_argument("--project", default="fss", help="wandb project, the log.project of the runs (default: fss)")
    arguments = parser.parse_args(argv)
    if arguments.print:
        print(markdown())
        return 0
    for job, place in publish(arguments.entity, arguments.project).items():
        print(f"{job}: {place}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
