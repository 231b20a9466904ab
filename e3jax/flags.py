"""Command line of everything that takes a config: --config=FILE.py[:arg], --config.field=value, --workdir=DIR.

Bad input ends with one sentence and exit status 2, never with a traceback; a bug still shows its traceback.
"""

import difflib
import re
import runpy
import sys
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags, logging
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
        except (AttributeError, KeyError):
            message = unknown_field(argv)
            if message is None:
                raise  # a bug in the config file shows its traceback
            stop(message)
        except (flags.Error, FileNotFoundError, ValueError, TypeError) as error:
            stop(str(error))

    def guarded(argv):
        logging.set_verbosity(logging.WARNING)  # jax and orbax tell every detail at INFO
        if len(argv) > 1:
            stop(f"{argv[1]!r} is not a flag: write --config.{argv[1]} or --workdir=…")
        try:
            config.value.to_dict()
        except OSError as error:  # ml_collections tells of a file that is not there at the first use only
            stop(" ".join(str(error).split()))
        try:
            main(config.value, workdir.value)
        except UserError as error:
            stop(str(error))

    app.run(guarded, flags_parser=parse)


def stop(message: str) -> NoReturn:
    """One line on stderr, exit status 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def unknown_field(argv: list[str]) -> str | None:
    """Name the override of a field that the config file lacks, and the nearest one."""
    given = re.search(r"(?:^|\0)--?config[=\0]([^\0]+)", "\0".join(argv))  # --config=FILE or --config FILE
    if given is None:
        return None
    path, _, argument = given[1].partition(":")
    module = runpy.run_path(path)
    known = list(flatten((module["get_config"](argument) if argument else module["get_config"]()).to_dict()))
    for arg in argv:
        match = re.match(r"--?config\.([^=]+)", arg)
        if match and match[1] not in known:
            near = difflib.get_close_matches(match[1], known, n=1)
            return f"config has no field {match[1]!r}" + (f": did you mean {near[0]!r}?" if near else "")
    return None
