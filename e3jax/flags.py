"""Command lines: of what takes a config (--config=FILE.py[:arg], --config.field=value, --workdir=DIR), and of tools.

Bad input ends with one sentence and exit status 2, never with a traceback; a bug still shows its traceback.
"""

import difflib
import faulthandler
import logging as python_logging
import os
import re
import runpy
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from e3jax.errors import Stopped, UserError
from e3jax.lock import release_all
from e3jax.log import flatten
from e3jax.printable import printable
from e3jax.runtime import end_all, finish, has_tpu, processes, start

# What libtpu would otherwise ask Google's servers for: only that there is an answer matters.
NO_TPU = {"TPU_ACCELERATOR_TYPE": "v5litepod-1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_LOG_DIR": "disabled"}


def run_command(main: Callable[[ConfigDict, str], None]) -> None:
    """Parse flags and call main(config, workdir)."""
    config = config_flags.DEFINE_config_file(
        "config", None, "config file, e.g. configs/quickstart.py", lock_config=True
    )
    workdir = flags.DEFINE_string("workdir", None, "run directory: records, checkpoints, report")
    flags.mark_flags_as_required(["config", "workdir"])

    def parse(argv):
        find_configs(argv)
        try:
            return flags.FLAGS(argv)
        except (AttributeError, KeyError):
            message = unknown_field(argv)
            if message is None:
                raise  # a bug in the config file shows its traceback
            stop(message)
        except (flags.Error, FileNotFoundError, ValueError, TypeError) as error:
            stop(sentence(error))

    def guarded(argv):
        if len(argv) > 1:
            stop(f"{argv[1]!r} is not a flag: write --config.{argv[1]} or --workdir=…")
        try:
            config.value.to_dict()
        except OSError as error:  # ml_collections tells of a file that is not there at the first use only
            stop(" ".join(str(error).split()))
        guard(run, config.value, workdir.value)

    def run(config, workdir):
        start()
        if processes() > 1:
            faulthandler.disable()  # absl's: when process 0 dies JAX aborts with a reason, to be found in the log
        try:
            main(config, workdir)
        except Stopped as stopped:
            print(f"stopped by SIGTERM: {stopped}; the same command goes on from there", file=sys.stderr)
        finish()

    app.run(guarded, flags_parser=parse)


def run_tool(main: Callable[[], None]) -> None:
    """Parse the flags that were defined and call main()."""

    def parse(argv):
        find_configs(argv)
        try:
            return flags.FLAGS(argv)
        except (AttributeError, KeyError):  # of a tool that takes a config
            message = unknown_field(argv)
            if message is None:
                raise
            stop(message)
        except (flags.Error, FileNotFoundError) as error:
            stop(" ".join(sentence(error).split()))

    def guarded(argv):
        if len(argv) > 1:
            stop(f"{argv[1]!r} is not a flag: write --name=value, with quotes around a value that has blanks")
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was begun is cleared away
        keep_programs()
        guard(main)

    app.run(guarded, flags_parser=parse)


def guard(main: Callable, *arguments) -> None:
    """Call `main`; what a person can mend is one sentence, and stopping it (Ctrl-C, a closed pipe) is no error.

    A process that fails ends the others: they may be waiting for it. A run directory is given back however it ends.
    """
    pass_over_tpu()
    logging.set_verbosity(logging.FATAL)  # orbax tells every detail, and every error that we tell, with its stack
    python_logging.getLogger("asyncio").setLevel(python_logging.CRITICAL)  # a broken checkpoint's every array, again
    try:
        main(*arguments)
    except UserError as error:
        stop(str(error))
    except (KeyboardInterrupt, BrokenPipeError) as ended:  # at once: an orderly end while the device works may crash
        if processes() > 1:
            end_all("stopped by Ctrl-C or a closed pipe", 130)
        release_all(2.0)
        os._exit(130 if isinstance(ended, KeyboardInterrupt) else 141)
    except Exception as error:
        if processes() == 1 and isinstance(error, OSError):  # a full disk, a place that cannot be written
            stop(str(error))
        if processes() == 1:
            raise
        end_all(traceback.format_exc(), 1, broken=isinstance(error, jax.errors.JaxRuntimeError))
    finally:
        release_all(30.0)


def pass_over_tpu() -> None:
    """Where libtpu is installed and no TPU is there, keep it from looking for one and complaining on stderr.

    JAX tries a TPU first wherever libtpu is installed. With these answers it fails at once and without a word; what was
    set by hand stays, and so does every message of a machine with a TPU.
    """
    if not has_tpu() and not jax.config.jax_platforms:
        for name, value in NO_TPU.items():
            os.environ.setdefault(name, value)


def keep_programs() -> None:
    """Keep compiled programs in $JAX_COMPILATION_CACHE_DIR or ~/.cache/e3jax/xla for the next start."""
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/e3jax/xla"))
    jax.config.update("jax_compilation_cache_dir", cache)


def stop(message: str) -> NoReturn:
    """Say what is wrong on stderr and exit with status 2.

    A list in the message has a line an item, which begins with two blanks; any other line break was not ours.
    """
    message = printable(re.sub("\n(?!  )", " ", message), lines=True)
    if processes() > 1:
        end_all(f"error: {message}", 2)
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def sentence(error: Exception) -> str:
    """Its message; of a config file's UserError the last part, which ml_collections wraps in a traceback."""
    return str(error).rsplit(f"{UserError.__module__}.{UserError.__name__}: ", 1)[-1]


def config_file(argv: list[str]) -> tuple[str, str]:
    """The file and the argument of --config=FILE[:ARGUMENT] or --config FILE[:ARGUMENT]; "" where there is none.

    >>> config_file(["command", "--config=configs/e3_math.py:stage=2", "--workdir=runs/x"])
    ('configs/e3_math.py', 'stage=2')
    """
    given = re.search(r"(?:^|\0)--?config[=\0]([^\0]+)", "\0".join(argv))
    path, _, argument = given[1].partition(":") if given else ("", "", "")
    return path, argument


def find_configs(argv: list[str]) -> None:
    """Let a config import its neighbours (`from configs.common import …`) in whatever directory the command runs.

    The nearest folder above the config that holds `configs/` goes onto sys.path; for a config that lies elsewhere, the
    clone that e3jax itself was installed from.
    """
    path, _ = config_file(argv)
    for folder in (*Path(path).resolve().parents, Path(__file__).resolve().parents[1]) if path else ():
        if (folder / "configs" / "common.py").exists():
            sys.path.insert(0, str(folder))
            return


def unknown_field(argv: list[str]) -> str | None:
    """Name every override of a field that the config file lacks, each with the nearest field, on a line of its own."""
    path, argument = config_file(argv)
    if not path:
        return None
    module = runpy.run_path(path)
    known = list(flatten((module["get_config"](argument) if argument else module["get_config"]()).to_dict()))
    lines = []
    for arg in argv:
        match = re.match(r"--?config\.([^=]+)", arg)
        if match and match[1] not in known:
            near = difflib.get_close_matches(match[1], known, n=1)
            lines.append(f"config has no field {match[1]!r}" + (f": did you mean {near[0]!r}?" if near else ""))
    return "\n  ".join(lines) or None
