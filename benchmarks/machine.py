"""Where and with what a benchmark ran, and what the machine can do at best: bytes and FLOPs per second, measured."""

import datetime
import importlib.metadata
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch

PACKAGES = ("jax", "jaxlib", "flax", "torch", "transformers", "google-tunix", "trl", "numpy")


def facts() -> dict:
    """Versions, date, processor, cores and load average at this moment."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    with open("/proc/cpuinfo") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return {
        "date": datetime.datetime.now().isoformat(timespec="seconds"),
        "processor": names[0] if names else "unknown",
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "versions": versions,
    }


def say(found: dict) -> None:
    """One line for a person."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    print(
        f"{found['date']}, {found['cores']} cores of {found['processor']}, load average {found['load_average']:.2f}; "
        f"{versions}",
        flush=True,
    )


def best(run, repeats: int = 5) -> float:
    """Least seconds of `run()`."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def read_bandwidth(megabytes: int = 512) -> float:
    """Bytes per second that a sum over an array far larger than the caches reads: the better of torch and JAX."""
    array = np.ones(megabytes * 2**18, np.float32)
    ours, theirs = jnp.asarray(array), torch.from_numpy(array)
    total = jax.jit(jnp.sum)
    total(ours).block_until_ready()
    seconds = min(best(lambda: total(ours).block_until_ready()), best(lambda: theirs.sum()))
    return array.nbytes / seconds


def matmul_peak(size: int = 2048) -> float:
    """FLOPs per second of a float32 matrix product: the better of torch and JAX."""
    array = np.ones((size, size), np.float32)
    ours, theirs = jnp.asarray(array), torch.from_numpy(array)
    product = jax.jit(lambda a: a @ a)
    product(ours).block_until_ready()
    seconds = min(best(lambda: product(ours).block_until_ready()), best(lambda: theirs @ theirs))
    return 2 * size**3 / seconds


def limits() -> dict:
    """Both."""
    return {"bytes_per_s": read_bandwidth(), "flops_per_s": matmul_peak()}
