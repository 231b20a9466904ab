"""8 simulated devices, strict rank promotion, float32 matmuls; a tiny random model for everybody.

A session's compiled programs are kept in one directory, for its workers and for every command that a test starts. They
are compiled without LLVM's optimisations, since most of the suite's time is compilation (a quarter to a third less
processor time, measured on three files); `XLA_FLAGS= pytest` compiles as a user's run does.
"""

import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before jax is imported, as the next
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

import jax
import jax.numpy as jnp
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "float32")

from e3jax.models.presets import preset  # noqa: E402
from e3jax.models.qwen3 import Qwen3, init_params  # noqa: E402


def pytest_configure(config):
    """Make the directory of compiled programs; workers, and what they start, inherit its name."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        made = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="e3jax-programs-")
        config.add_cleanup(lambda: shutil.rmtree(made, ignore_errors=True))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


# Takes minutes and repeats on more commands, or on larger inputs, what another test guards: not in .ci/run
SLOW = pytest.mark.skipif("E3JAX_SLOW" not in os.environ, reason="takes minutes: set E3JAX_SLOW=1")

# Files that take longest, longest first: where a file is one worker's (pyproject.toml), workers then end together.
LONGEST = (
    "test_hosts", "test_train_resume", "test_train_math", "test_sampler", "test_gcs", "test_tools_aot", "test_eval_run",
    "test_train_faults", "test_train_grpo", "test_notebooks",
)  # fmt: skip


# Files of hand-computed numbers that compile little: `pytest -m fast`, under a minute on two cores.
FAST = (
    "test_countdown_plans", "test_countdown_traces", "test_layers", "test_losses_advantages", "test_losses_e2c",
    "test_losses_sft", "test_metrics_extrapolation", "test_metrics_majority", "test_metrics_pass_at_k",
    "test_metrics_seeds",
    "test_models_presets", "test_phases", "test_records", "test_rewards_countdown", "test_rewards_mcq",
    "test_rewards_multiplication", "test_rewards_plan", "test_sampler_page_table", "test_settings",
    "test_tasks_countdown", "test_tasks_grade", "test_tasks_mcq", "test_tasks_multiplication", "test_tasks_products",
    "test_tasks_table", "test_train_packing",
)  # fmt: skip


def pytest_ignore_collect(collection_path, config):
    """Leave out the other files when `-m fast` asks for the fast tier: importing them all takes half a minute."""
    if config.option.markexpr == "fast" and collection_path.name.startswith("test_"):
        return collection_path.stem not in FAST
    return None


def pytest_collection_modifyitems(items):
    """Sort files as LONGEST says, all others as they are; mark those of FAST."""
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))
    for item in items:
        if item.path.stem in FAST:
            item.add_marker(pytest.mark.fast)


@pytest.fixture(scope="module", autouse=True)
def room_for_programs():
    """Forget compiled programs once they fill half of what Linux lets a process map (65,530 pieces of memory).

    A program of XLA's CPU backend takes about a hundred pieces. The suite in one process ended in a segmentation fault,
    most likely there. Programs that are needed again come from the directory on disk.
    """
    yield
    if Path("/proc/self/maps").exists() and len(Path("/proc/self/maps").read_text().splitlines()) > 32_000:
        jax.clear_caches()


@pytest.fixture(scope="session")
def tiny():
    """Return (model, params) of the tiny preset: random weights, float32."""
    model = Qwen3(preset("tiny"), dtype=jnp.float32, remat="none", kernel="xla")
    return model, jax.jit(init_params, static_argnums=0)(model, jax.random.key(0))  # op by op it takes seconds


SHARED = Path(__file__).resolve().parents[2] / "shared/data"  # real data beside the clone, which most clones lack


@pytest.fixture(scope="session", params=["small", "real"])
def qwen3_files(request, tmp_path_factory):
    """Return the directory of a tokenizer with Qwen3's special tokens and chat format: a small one made here, and
    Qwen3's where it is at hand.
    """
    from tiny_text import write_qwen3_like

    pytest.importorskip("transformers", reason="real tokenizers need pip install -e '.[hf]'")
    if request.param == "small":
        return write_qwen3_like(tmp_path_factory.mktemp("qwen3-like"))
    if not (SHARED / "qwen3-tokenizer").exists():
        pytest.skip(f"{SHARED}/qwen3-tokenizer is absent: Qwen3's own tokenizer beside the small one")
    return SHARED / "qwen3-tokenizer"


@pytest.fixture(scope="session")
def checkpoint(tiny, tmp_path_factory):
    """Return a directory with the tiny model and calculator Countdown's words."""
    from e3jax.tasks.countdown_traces import WORDS

    return write_checkpoint(tiny, tmp_path_factory.mktemp("model"), WORDS)


def write_checkpoint(tiny, directory, words):
    """Write the tiny model with these words; its logits are spread so that some responses end by themselves."""
    from e3jax.checkpoint.hf import save_hf
    from e3jax.checkpoint.pretrained import write_description
    from e3jax.tokenizer import WordTokenizer

    model, params = tiny
    write_description(directory, model.config, WordTokenizer(words), dtype="float32", generation={})
    save_hf(params | {"embed_vd": params["embed_vd"] * 8}, directory, most_bytes=1 << 30)
    return directory
