"""Every >>> example of the package runs, and every test file that a docstring names exists."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import e3jax

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", [m.name for m in pkgutil.walk_packages(e3jax.__path__, "e3jax.")])
def test_examples_run(name):
    """An example that is wrong misleads more than none."""
    module = importlib.import_module(name)
    assert doctest.testmod(module, extraglobs={"np": np, "jnp": jnp}).failed == 0
    for path in re.findall(r"tests/\w+\.py", Path(module.__file__).read_text()):
        assert (ROOT / path).exists(), path
