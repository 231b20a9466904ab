"""Commands start in any directory, and say nothing that is not theirs to say."""

import errno
import importlib.util
import os
import subprocess
import sys
import threading
from pathlib import Path

import jax
import pytest

from e3jax import flags, runtime
from e3jax.compiling import Compiled, GpuJit, gpu_options
from e3jax.runtime import has_tpu

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.py"))


def test_options_of_the_compiler_are_for_gpus_and_known_ones(monkeypatch):
    """An option that a later XLA drops must not end every run; on a CPU nothing is asked and nothing is set."""
    options = {"xla_gpu_enable_dynamic_slice_fusion": True, "xla_gpu_no_such_option": 1}
    assert gpu_options(options) is None
    double = GpuJit(lambda x, n: x * n, options=options, static_argnames="n")
    assert double(3, n=2) == 6 and "multiply" in double.lower(3, n=2).as_text() and double._cache_size() == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert gpu_options(options) == {"xla_gpu_enable_dynamic_slice_fusion": True}


def test_what_was_compiled_is_told_once():
    """A start on a GPU says how long its user waits for the compiler, and what an earlier start saved."""
    compiled = Compiled()
    assert compiled.told() == ""
    compiled._heard("/jax/core/compile/backend_compile_duration", 2.6, fun_name="step")
    compiled._heard("/jax/core/compile/jaxpr_trace_duration", 9.0)
    compiled._heard("/jax/core/compile/backend_compile_duration", 0.1)
    compiled._heard("/jax/compilation_cache/cache_hits")
    assert compiled.told() == "2 programs compiled in 3 s, 1 of them kept from an earlier start"
    assert compiled.told() == ""
    jax.jit(lambda x: x - 17)(2.0)
    assert compiled.programs >= 1


@pytest.fixture
def joined(monkeypatch):
    """Return what JAX is told of the processes that `runtime.start` joins, without any; threads end with the test."""
    told = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **_: told.append(args))
    monkeypatch.setattr(runtime, "processes", lambda: 4)
    monkeypatch.setattr(runtime, "sigterm_pipe", lambda: 0)
    monkeypatch.setattr(runtime, "await_sigterm", lambda *_: None)
    monkeypatch.setattr(runtime, "OVER", threading.Event())
    monkeypatch.setattr(runtime, "on_cluster", lambda: True)
    for name in runtime.NAMES:
        monkeypatch.delenv(name, raising=False)
    yield told
    runtime.finish()


def test_all_processes_but_the_first_reach_it_through_a_relay(joined, monkeypatch):
    """Whoever names them: three variables, or a launcher that JAX knows."""
    for index in ("0", "3"):
        for name, value in zip(runtime.NAMES, ("host0:1234", "4", index)):
            monkeypatch.setenv(name, value)
        runtime.start()
    for name in runtime.NAMES:
        monkeypatch.delenv(name)
    detected = lambda *_: ("host0:1234", 4, 2, [0])  # noqa: E731
    monkeypatch.setattr("jax._src.clusters.ClusterEnv.auto_detect_unset_distributed_params", detected)
    runtime.start()
    addresses = [address.rpartition(":")[0] for address, *_ in joined]
    assert addresses == ["host0", "127.0.0.1", "127.0.0.1"] and [rest for _, *rest in joined] == [
        [4, 0],
        [4, 3],
        [4, 2],
    ]


def test_a_jax_that_has_renamed_what_is_private_costs_words_only(joined, monkeypatch, capsys):
    """The next release may: a command must not end at its import, and a person must know what is missing."""
    monkeypatch.delattr("jax._src.clusters.ClusterEnv")
    monkeypatch.setitem(sys.modules, "jax._src.distributed", None)
    monkeypatch.delattr("jax._src.distributed")
    runtime.start()
    assert joined == [(None, None, None)] and runtime.known() is None
    runtime.tell("process 1 of 4 failed: why")
    said = capsys.readouterr().err
    assert "ClusterEnv: if process 0 dies, the others end with JAX's words. Tested are JAX" in said
    assert "client: a process that fails cannot tell the others why. Tested are JAX" in said and "failed: why" in said


def test_a_disk_that_fails_on_process_0_is_a_sentence_on_all_and_a_bug_is_not(monkeypatch):
    """With one process it was, with several a traceback through e3jax/runtime.py on each."""
    ended = []
    monkeypatch.setattr(runtime, "processes", lambda: 2)
    monkeypatch.setattr(runtime, "gather", lambda mine: [mine, (None, None)])
    monkeypatch.setattr(runtime, "is_main", lambda: True)
    monkeypatch.setattr(flags, "processes", lambda: 2)
    monkeypatch.setattr(flags, "end_all", lambda why, code, **_: ended.append((why, code)))

    def full():
        raise OSError(errno.ENOSPC, "No space left on device", "run/base.json")

    with pytest.raises(SystemExit):  # where end_all would have ended the process
        flags.guard(lambda: runtime.from_main(full))
    flags.guard(lambda: runtime.from_main(dict().popitem))
    assert ended[0] == ("error: [Errno 28] No space left on device: 'run/base.json'", 2)
    assert ended[-1][0].startswith("Traceback") and "popitem(): dictionary is empty" in ended[-1][0]


@pytest.fixture
def elsewhere(tmp_path):
    """Return a function that runs Python in another directory, with e3jax installed and nothing else of the clone."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/e3jax").symlink_to(ROOT / "e3jax")
    (tmp_path / "here").mkdir()

    def run(*arguments, platforms="cpu"):
        env = {name: value for name, value in os.environ.items() if not name.startswith(("TPU_", "JAX_PLATFORMS"))}
        env |= {"PYTHONPATH": str(tmp_path / "site")} | ({"JAX_PLATFORMS": platforms} if platforms else {})
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path / "here", env=env, capture_output=True, text=True, timeout=240)

    return run


def test_every_config_is_read_from_any_directory(elsewhere):
    """Guards against "No module named 'configs'": Python looked for a config's neighbours in the current directory."""
    read = (
        "import runpy, sys\nfrom e3jax.flags import find_configs\n"
        "for path in sys.argv[1:]:\n"
        "    before, known = list(sys.path), set(sys.modules)\n"
        "    find_configs(['command', '--config', path + ':stage=2', '--workdir=x'])\n"
        "    assert 'get_config' in runpy.run_path(path) or path.endswith('common.py'), path\n"
        "    sys.path[:] = before\n"
        "    for name in set(sys.modules) - known:\n"
        "        del sys.modules[name]\n"
    )
    done = elsewhere("-c", read, *CONFIGS)
    assert done.returncode == 0, done.stderr
    assert len(CONFIGS) >= 25


def test_commands_run_from_any_directory(elsewhere, tmp_path):
    """A command with a run directory and a tool run; a user's config that lies elsewhere can import the clone's."""
    wrong = [f"--config={ROOT}/configs/quickstart.py", "--workdir=run", "--config.model.dtype=float99"]
    done = elsewhere("-m", "e3jax.train.curriculum", *wrong)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "model.dtype='float99'" in done.stderr, done.stderr
    mine = tmp_path / "mine.py"
    mine.write_text("from configs.e3_math import get_config  # noqa: F401\n")
    tool = ["-m", "e3jax.tools.cost", "--chips=128", "--length=8192"]
    in_clone, outside = (elsewhere(*tool, f"--config={path}:stage=2") for path in (ROOT / "configs/e3_math.py", mine))
    assert in_clone.returncode == 0 and in_clone.stdout.count("|") > 10, in_clone.stderr
    assert outside.stdout == in_clone.stdout, outside.stderr


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="no libtpu that could complain: pip install libtpu")
@pytest.mark.skipif(has_tpu(), reason="a TPU is here")
def test_libtpu_without_a_tpu_is_quiet(elsewhere):
    """JAX tries libtpu first wherever it is installed, which wrote six lines about this machine's missing name."""
    done = elsewhere(
        "-m",
        "e3jax.train.curriculum",
        f"--config={ROOT}/configs/smoke.py",
        "--workdir=run",
        "--config.model.attention=cudnn",
        platforms="",
    )
    assert done.stderr.splitlines() == [
        "error: config.model.attention='cudnn': runs on gpu, this is cpu: use 'auto'"
    ], done.stderr


def test_a_tpus_machine_is_left_alone(monkeypatch):
    """What libtpu is told without a TPU would be wrong where there is one; variables set by a person are kept."""
    for name in flags.NO_TPU:
        monkeypatch.delenv(name, raising=False)
    platforms = jax.config.jax_platforms
    try:
        jax.config.update("jax_platforms", "tpu,cpu")
        flags.pass_over_tpu()
        jax.config.update("jax_platforms", None)
        monkeypatch.setattr(flags, "has_tpu", lambda: True)
        flags.pass_over_tpu()
        assert not set(flags.NO_TPU) & set(os.environ)
        monkeypatch.setattr(flags, "has_tpu", lambda: False)
        monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "mine")
        flags.pass_over_tpu()
        assert {name: os.environ[name] for name in flags.NO_TPU} == flags.NO_TPU | {"TPU_WORKER_HOSTNAMES": "mine"}
    finally:
        jax.config.update("jax_platforms", platforms)
        for name in flags.NO_TPU:
            os.environ.pop(name, None)
