"""Parse many `python -m MODULE …` commands in one process, as they would be parsed, and run none.

    echo '[["e3jax.train.curriculum", "--config=configs/smoke.py", "--workdir=x"]]' | python tests/parse_commands.py

The module runs as __main__ until its flags are parsed: configs are loaded, overrides applied and typed, unknown flags
refused. Its main is never called. -> JSON [[exit status or null, what it said], …]: 0 when it would have begun.
"""

import argparse
import contextlib
import io
import json
import runpy
import sys

from absl import flags

import e3jax.flags


class Parsed(Exception):
    """Raised where the work would begin: the command line is right."""


def begin(*_):
    raise Parsed


def parse(module: str, *words: str) -> tuple[int | None, str]:
    """Return (exit status, stdout and stderr)."""
    said, known, sys.argv = io.StringIO(), set(flags.FLAGS), [module, *words]
    given = argparse.ArgumentParser.parse_args

    def parse_args(parser, *args):
        given(parser, *args)
        raise Parsed

    argparse.ArgumentParser.parse_args = parse_args
    status = None
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except Parsed:
        status = 0
    except SystemExit as ended:
        status = ended.code
    except Exception as error:
        said.write(f"Traceback: {error!r}")
    finally:
        argparse.ArgumentParser.parse_args = given
        for name in set(flags.FLAGS) - known - {"help", "helpfull", "helpshort", "helpxml", "?"}:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
        for name in flags.FLAGS:
            flags.FLAGS[name].unparse()
    return status, said.getvalue()


if __name__ == "__main__":
    sys.path.insert(0, ".")
    e3jax.flags.guard = begin
    json.dump([parse(*command) for command in json.load(sys.stdin)], sys.stdout)
