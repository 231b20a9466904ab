"""Command line of everything that takes a config: --config=FILE.py[:arg], --config.field=value, --workdir=DIR.

Bad input ends with one sentence and exit status 2, never with a traceback; a bug still shows its traceback.
"""

import difflib
import re
import sys
from collections.abc import Callable

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from e3jax.log import flatten
from e3jax.types import UserError


def run_command(main: Callable[[ConfigDict, str], None]) -> None:
    """Parse flags and call main(config, workdir)."""
    config = config_flags.DEFINE_config_file(
        "config", None, "config file, e.g. configs/quickstart.py", lock_config=True
    )
    workdir = flags.DEFINE_string("workdir", None, "run directory: records, checkpoints, report")
    flags.mark_flags_as_required(["config", "workdir"])

    def parse(argv):
        try:
            return flags.FLAGS(argv)
        except (AttributeError, KeyError) as error:
            sys.exit(f"error: {unknown_key(argv, error)}")
        except (flags.Error, FileNotFoundError, ValueError, TypeError) as error:
            sys.exit(f"error: {error}")

    def guarded(argv):
        if len(argv) > 1:
            sys.exit(f"error: {argv[1]!r} is not a flag: write --config.{argv[1]} …")
        try:
            main(config.value, workdir.value)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    app.run(guarded, flags_parser=parse)


def unknown_key(argv, error: Exception) -> str:
    """Sentence for an override of a field that does not exist, with the nearest one that does."""
    known = list(flatten(flags.FLAGS["config"].value.to_dict()))
    for arg in argv:
        match = re.match(r"--?config\.([^=]+)", arg)
        if match and match[1] not in known:
            near = difflib.get_close_matches(match[1], known, n=1)
            return f"config has no field {match[1]!r}" + (f": did you mean {near[0]!r}?" if near else "")
    return str(error)
