"""How responses are drawn, and the sizes of slots, pages and prompts that follow: for sampling, and for tools/aot.py.

sampling = Sampling(temperature=1.0, slots=128, prefill_rows=64)
sizes = plan(sampling, shards=8, prompts=64, prompt_b=np.full(512, 140), limit_b=np.full(512, 652))
sizes.slots, sizes.prompt_rows, sizes.empty_table(), sizes.empty_shared()
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from e3jax.errors import need
from e3jax.models.pages import MERGED, PAGE
from e3jax.models.presets import ModelConfig
from e3jax.sampler.choose import Choice
from e3jax.sampler.page_table import LEAST, PageTable, pages_of
from e3jax.sampler.shared_pages import SharedPages, shared_pages_of

CACHES = ("compute", "int8")
PREFILL = 2048  # tokens: the longest prompt of which config.sampler.prefill_rows are prefilled together
WHOLE = 1 << 29  # bytes of a device that a pool of a GPU takes at once


@dataclass(frozen=True)
class Sampling:
    """A config's `sampler` section with a temperature: what may be drawn, and how many responses decode together."""

    temperature: float  # 0 takes the likeliest token
    top_k: int = 0  # tokens that may be drawn; 0: all
    top_p: float = 1.0  # mass of the nucleus that may be drawn; 1: all
    slots: int = 128  # responses that decode together; in training 0: as many as memory holds (train/fit.py)
    block: int = 16  # decode steps between refills
    prefill_rows: int = 64  # prompts prefilled together
    cache: str = "compute"  # keys and values in the model's dtype; "int8": in 8 bits
    tensor: int = 1  # devices that share one copy of the weights
    renormalised: bool = False  # log-probs are those of what top_k and top_p leave; RL sets it, no config does
    environment: Any = None  # what replies between turns (rollout/episodes.py); commands set it, no config does

    def __post_init__(self):
        need(self.temperature >= 0, "temperature", self.temperature, "0 (the likeliest token) or more")
        need(self.top_k >= 0, "top_k", self.top_k, "0 (off) or more")
        need(0 < self.top_p <= 1, "top_p", self.top_p, "above 0, 1 is off")
        need(self.cache in CACHES, "cache", self.cache, f"use one of {', '.join(map(repr, CACHES))}")
        need(self.slots >= 0, "slots", self.slots, "use 1 or more, in training also 0 (as many as memory holds)")
        for name in ("block", "prefill_rows", "tensor"):
            need(getattr(self, name) >= 1, name, getattr(self, name), "use 1 or more")

    @property
    def choice(self) -> Choice:
        """Return which tokens may be drawn."""
        return Choice(self.temperature, self.top_k, self.top_p, self.renormalised)

    @property
    def restricted(self) -> bool:
        """Return whether top_k or top_p leaves tokens out."""
        return self.top_k > 0 or self.top_p < 1

    @property
    def less_memory(self) -> str:
        """Return what to do where sampling runs out of memory, as a part of a sentence."""
        return (
            f"lower config.sampler.slots (now {self.slots}) or config.sampler.prefill_rows (now {self.prefill_rows}), "
            "shorten the budget, or set config.sampler.cache='int8'"
        )

    def kv_dtype(self, compute_dtype) -> jnp.dtype:
        """Return the dtype of keys and values for a model that computes in `compute_dtype`."""
        return jnp.dtype("int8") if self.cache == "int8" else jnp.dtype(compute_dtype)


class Sizes(NamedTuple):
    """Shapes of the sampler's programs; slots and rows are the same number on every one of `shards` devices."""

    shards: int
    slots: int
    prompt_rows: int  # of a prefill
    longest: int  # pages of the longest sample that can occur
    alone: int  # most of them that a sample does not share
    shared: int  # most pages of a prompt that its samples share
    copied: int  # most pages of a prompt that each sample has a copy of: 2 where one would be shared, else 1
    least: int = LEAST  # pages per device in the first piece of a pool

    def empty_table(self) -> PageTable:
        """Return the page table of slots without requests."""
        columns = size_bucket(-(-self.longest // MERGED) * MERGED)
        sizes = dict(page=PAGE, columns=columns, longest=self.alone, least=self.least)
        return PageTable.empty(self.shards, self.slots, **sizes)

    def empty_shared(self) -> SharedPages:
        """Return the table of shared pages, of which there are none."""
        return SharedPages.empty(self.shards, self.slots, page=PAGE, longest=self.shared, least=self.least)


def plan(sampling: Sampling, *, shards: int, prompts: int, prompt_b: np.ndarray, limit_b: np.ndarray) -> Sizes:
    """Return the sizes for responses to `prompts` prompts, of prompt_b[b] tokens, limit_b[b] with the response.

    No more slots and rows than there is work; each rounded up to a multiple of `shards`.
    """

    def dealt(most: int) -> int:
        return -(-most // shards) * shards

    slots, rows = min(sampling.slots, len(limit_b)), min(sampling.prefill_rows, prompts)
    pages_b, shared_b = pages_of(limit_b, PAGE), shared_pages_of(prompt_b, PAGE)
    copied_b = pages_of(prompt_b, PAGE) - shared_b
    pages = (int(x.max()) for x in (pages_b, pages_b - shared_b, shared_b, copied_b))
    return Sizes(shards, dealt(slots), dealt(rows), *pages)


def first_pages(config: ModelConfig, kv_dtype, *, platform: str) -> int:
    """Return how many pages a pool begins with at least: on a GPU what `WHOLE` bytes hold, elsewhere LEAST.

    Every size of a pool is a program. So a small model's pool on a GPU has one size, and its first rollouts compile two
    or three programs of decoding instead of ten; on a CPU, which reads pieces whole, a large one would cost more.

    >>> from e3jax.models.presets import preset
    >>> [first_pages(preset(name), "bfloat16", platform="gpu") for name in ("tiny", "smollm2-135m", "qwen3-8b")]
    [21840, 360, 56]
    """
    page = 2 * config.layers * config.kv_heads * config.head_width * PAGE * jnp.dtype(kv_dtype).itemsize
    return max(WHOLE // page // LEAST * LEAST, LEAST) if platform == "gpu" else LEAST


def rows_within(tokens: int, longest: int) -> int:
    """Return how many prompts are prefilled together so that the longest's rows hold about `tokens`; 1 or more.

    >>> rows_within(4096, 1000), rows_within(4096, 9000)
    (4, 1)
    """
    return max(tokens // longest, 1)


def at_most(most: int, count: int) -> int:
    """Return `most`, or where there is less than that to do a power of two: few numbers, so few programs.

    >>> at_most(128, 300), at_most(128, 57), at_most(128, 1)
    (128, 32, 1)
    """
    return most if count >= most else 1 << (count.bit_length() - 1)


def prompt_width(longest: int, most: int) -> int:
    """Return the positions of a prefill whose longest prompt has `longest` tokens, for a model that reads `most`.

    Powers of two for short prompts, multiples of 1,024 for long ones, and whole pages.
    """
    width = size_bucket(longest, most) if longest <= 1024 else min(-(-longest // 1024) * 1024, most)
    return pages_of(width, PAGE) * PAGE


def size_bucket(n: int, most: int = 1 << 30) -> int:
    """Return the smallest of 16, 32, 64, 128, … that holds n, or `most`: the few shapes that the sampler compiles."""
    return min(max(16, 1 << (n - 1).bit_length()), most)
