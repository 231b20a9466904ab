"""Command lines of commands (--config=FILE.py[:arg], --config.field=value, --workdir=DIR) and of tools.

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

# libtpu would otherwise ask Google's servers for these; it matters only that there is an answer.
NO_TPU = {"TPU_ACCELERATOR_TYPE": "v5litepod-1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_LOG_DIR": "disabled"}


def run_command(main: Callable[[ConfigDict, str], None]) -> None:
    """Parse the flags of a command and call main(config, workdir)."""
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
        except OSError as error:  # ml_collections reports a missing file only at the first use
            stop(" ".join(str(error).split()))
        guard(run, config.value, workdir.value)

    def run(config, workdir):
        start()
        if processes() > 1:
            faulthandler.disable()  # where JAX aborts (e3jax/relay.py), absl's stack would bury its reason
        try:
            main(config, workdir)
        except Stopped as stopped:
            print(f"stopped by SIGTERM: {stopped}; the same command goes on from there", file=sys.stderr)
        finish()

    app.run(guarded, flags_parser=parse)


def run_tool(main: Callable[[], None]) -> None:
    """Parse the flags that a tool has defined and call main()."""

    def parse(argv):
        find_configs(argv)
        try:
            return flags.FLAGS(argv)
        except (AttributeError, KeyError):  # raised for a tool that takes a config
            message = unknown_field(argv)
            if message is None:
                raise
            stop(message)
        except (flags.Error, FileNotFoundError) as error:
            stop(" ".join(sentence(error).split()))

    def guarded(argv):
        if len(argv) > 1:
            stop(f"{argv[1]!r} is not a flag: write --name=value, with quotes around a value that has blanks")
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, so that unfinished files are removed
        keep_programs()
        guard(main)

    app.run(guarded, flags_parser=parse)


def guard(main: Callable, *arguments) -> None:
    """Call `main`; show a UserError as one sentence, and treat Ctrl-C and a closed pipe as no error.

    A process that fails ends the others, which may be waiting for it. A run directory is released however `main` ends.
    """
    pass_over_tpu()
    logging.set_verbosity(logging.FATAL)  # orbax logs every detail, and with its stack every error that we show
    python_logging.getLogger("asyncio").setLevel(python_logging.CRITICAL)  # it logs each array of a broken checkpoint
    try:
        main(*arguments)
    except UserError as error:
        stop(str(error))
    except (KeyboardInterrupt, BrokenPipeError) as ended:  # at once: an orderly end may crash while a device works
        if processes() > 1:
            end_all("stopped by Ctrl-C or a closed pipe", 130)
        release_all(2.0)
        os._exit(130 if isinstance(ended, KeyboardInterrupt) else 141)
    except Exception as error:
        # a full disk, a place that cannot be written; from_main's own OSError may stand for a bug
        if isinstance(error, OSError) and (processes() == 1 or error.errno):
            stop(str(error))
        if processes() == 1:
            raise
        end_all(traceback.format_exc(), 1, broken=isinstance(error, jax.errors.JaxRuntimeError))
    finally:
        release_all(30.0)


def pass_over_tpu() -> None:
    """Keep libtpu from looking for a TPU and complaining on stderr where it is installed and there is none.

    JAX tries a TPU first wherever libtpu is installed. With these answers it fails at once and silently. Variables that
    were set by hand stay, and so does every message on a machine with a TPU.
    """
    if not has_tpu() and not jax.config.jax_platforms:
        for name, value in NO_TPU.items():
            os.environ.setdefault(name, value)


def keep_programs() -> None:
    """Keep compiled programs in $JAX_COMPILATION_CACHE_DIR or ~/.cache/e3jax/xla for the next start.

    JAX leaves out those that compile in less than a second, of which a tiny model's run has many: here they are kept.
    """
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/e3jax/xla"))
    jax.config.update("jax_compilation_cache_dir", cache)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def stop(message: str) -> NoReturn:
    """Say what is wrong on stderr and exit with status 2.

    A list in the message has one item per line, which begins with two blanks; any other line break is replaced.
    """
    message = printable(re.sub("\n(?!  )", " ", message), lines=True)
    if processes() > 1:
        end_all(f"error: {message}", 2)
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def sentence(error: Exception) -> str:
    """Return an error's message, without the traceback in which ml_collections wraps a config file's UserError."""
    return str(error).rsplit(f"{UserError.__module__}.{UserError.__name__}: ", 1)[-1]


def config_file(argv: list[str]) -> tuple[str, str]:
    """Return file and argument of --config=FILE[:ARGUMENT] or --config FILE[:ARGUMENT]; "" for what is absent.

    >>> config_file(["command", "--config=configs/e3_math.py:stage=2", "--workdir=runs/x"])
    ('configs/e3_math.py', 'stage=2')
    """
    given = re.search(r"(?:^|\0)--?config[=\0]([^\0]+)", "\0".join(argv))
    path, _, argument = given[1].partition(":") if given else ("", "", "")
    return path, argument


def find_configs(argv: list[str]) -> None:
    """Let a config import its neighbours (`from configs.common import …`) in whatever directory the command runs.

    Puts the nearest folder above the config that holds `configs/` onto sys.path; for a config that lies elsewhere, the
    clone from which e3jax was installed.
    """
    path, _ = config_file(argv)
    for folder in (*Path(path).resolve().parents, Path(__file__).resolve().parents[1]) if path else ():
        if (folder / "configs" / "common.py").exists():
            sys.path.insert(0, str(folder))
            return


def unknown_field(argv: list[str]) -> str | None:
    """Return a line for every override of a field that the config lacks, with the nearest field; None without any."""
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
