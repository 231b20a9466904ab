"""The command: the report of one run, or the comparison of several.

python -m e3jax.report runs/countdown
python -m e3jax.report runs/seed0 runs/seed1 runs/mask --to=runs/comparison
"""

import argparse

from e3jax.errors import UserError
from e3jax.printable import printable
from e3jax.report.compare import write_comparison
from e3jax.report.html import write_report


def main() -> None:
    """Write RUN_DIR/report.html, or a comparison, and print where it is."""
    about = {"prog": "python -m e3jax.report", "description": "Write RUN_DIR/report.html, or compare runs."}
    parser = argparse.ArgumentParser(**about)
    parser.add_argument("run_dir", nargs="+", help="what training commands wrote; several are compared on one page")
    parser.add_argument("--to", help="directory of a comparison; default: comparison/ beside the first run")
    given = parser.parse_args()
    try:
        one = len(given.run_dir) == 1 and given.to is None
        path = write_report(given.run_dir[0]) if one else write_comparison(given.run_dir, to=given.to)
        print(printable(path, lines=False))
    except (OSError, UserError) as error:
        parser.exit(2, f"{printable(error, lines=False)}\n")


if __name__ == "__main__":
    main()
