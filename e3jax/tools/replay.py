"""Compute a gradient that was not finite once more, and show which parameters, terms and tokens are to blame.

    python -m e3jax.tools.replay --dump=runs/quickstart/replay/easy-12
    python -m e3jax.tools.replay --dump=runs/quickstart/replay/easy-12 --dtype=float32

It reads what `train/faults.py` wrote (the parameters of that step, the micro-batches of one update, and how the
gradient was called), and the model's fields of RUN/config.json. The exit status is 1 when the gradient is not finite
here, either.
"""

import os
import zipfile
from dataclasses import fields

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath
from rich.console import Console
from rich.table import Table

from e3jax.checkpoint.pretrained import model_config
from e3jax.checkpoint.store import by_name, load_params
from e3jax.errors import UserError, first_line
from e3jax.flags import run_tool
from e3jax.losses.grpo import GrpoLoss
from e3jax.models.lora import Lora, trained
from e3jax.models.qwen3 import Qwen3, abstract_policy
from e3jax.readers import read_json
from e3jax.sharding import make_mesh
from e3jax.storage import place
from e3jax.train.grpo import grpo_gradient
from e3jax.train.logprobs import score
from e3jax.train.named_model import dtype_of
from e3jax.train.oxa import oxa_gradient
from e3jax.train.sft import sft_gradient
from e3jax.types import Batch

SHOWN = 10  # lines of a table
MOST_BYTES = 1 << 32  # of one micro-batch's arrays: more is no batch
CALL = {"kind": str, "chunk": int, "temperature": float, "loss": dict}
LORA = {"rank": int, "alpha": float, "matrices": str}
MODEL = {"name?": str, "preset": str, "dtype": str, "remat": str, "lora?": LORA}  # "?": earlier versions lack it
# kind of stage -> how many arrays a micro-batch may have; `chosen` is the last of Batch, and of some losses only
BATCHES = {"sft": (4,), "oxa": (5,), "grpo": (len(fields(Batch)) - 1, len(fields(Batch)))}


def read(dump: epath.Path) -> tuple[dict, list[list[np.ndarray]], dict]:
    """Return how the gradient was called, the arrays of every micro-batch, and the run's model section."""
    for file in (dump / "call.json", dump / "batch-0.npz", dump.parent.parent / "config.json"):
        if not file.exists():
            raise UserError(f"{file} is missing: name a directory like RUN/replay/STAGE-STEP, inside its run")
    damaged = "it was not written by a run, or is cut: make the dump again"
    call = read_json(dump / "call.json", CALL, advice=damaged)
    if call["kind"] not in BATCHES:
        raise UserError(f"{dump / 'call.json'}: kind is {call['kind']!r}, not one of {', '.join(BATCHES)}")
    batches = []
    while (path := dump / f"batch-{len(batches)}.npz").exists():
        batches.append(read_arrays(path, BATCHES[call["kind"]]))
    run = read_json(dump.parent.parent / "config.json", {"model": MODEL}, advice="name a dump inside its run")
    model = run["model"]
    name = model["name"] if "name" in model else ""
    remat = "full" if model["remat"] == "auto" else model["remat"]  # which follows from the machine
    dtype = dtype_of(name, model["dtype"])
    lora = Lora(**{key: model["lora"][key] for key in LORA}) if "lora" in model and model["lora"]["rank"] else None
    return call, batches, model | {"preset": name or model["preset"], "dtype": dtype, "remat": remat, "lora": lora}


def read_arrays(path: epath.Path, numbers: tuple[int, ...]) -> list[np.ndarray]:
    """Return the arrays of a micro-batch, numbers [rows, width]; raise UserError for a damaged file or a zip bomb."""
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as members:
            size = sum(member.file_size for member in members.infolist())
            if size > MOST_BYTES:
                raise ValueError(f"{size:,} bytes when it is unpacked")
            file.seek(0)
            opened = np.load(file)
            arrays = [opened[name] for name in opened.files]
        shapes = {array.shape for array in arrays}
        if len(arrays) not in numbers or len(shapes) != 1 or len(arrays[0].shape) != 2:
            raise ValueError(f"{len(arrays)} arrays of shapes {sorted(shapes)}, not {numbers[0]} of one [rows, width]")
        if any(array.dtype.kind not in "biuf" for array in arrays):
            raise ValueError("arrays that hold no numbers")
    except Exception as error:  # zipfile, zlib and numpy raise what they like on files that are cut or made up
        raise UserError(f"{path} is damaged ({first_line(error)}): make the dump again") from error
    return arrays


def gradient(model: Qwen3, params, arrays: list[np.ndarray], call: dict):
    """Return gradients and metrics of one micro-batch, and the log-probs [B, T] of its tokens under `params`."""
    fixed = dict(chunk=call["chunk"])
    if call["kind"] == "sft":
        result = sft_gradient(model, params, *arrays, **fixed)
    elif call["kind"] == "oxa":
        result = oxa_gradient(model, params, *arrays, **fixed, **call["loss"])
    else:
        fixed["temperature"] = call["temperature"]
        result = grpo_gradient(model, params, Batch(*arrays), **fixed, loss=GrpoLoss(**call["loss"]))
    logp = score(model, params, *arrays[:3], temperature=call["temperature"], chunk=call["chunk"])
    return *result, np.asarray(logp)


def parameter_table(params, grads) -> Table:
    """Return a table of every parameter's size and its gradient's, the worst first."""
    table = Table(title="parameters, and gradients of all micro-batches")
    table.add_column("parameter", no_wrap=True)
    for column in ("largest", "not finite", "gradient: norm of what is finite", "not finite"):
        table.add_column(column, justify="right")
    rows = []
    for (name, p), g in zip(by_name(params).items(), jax.tree.leaves(grads)):
        bad = int((~jnp.isfinite(g)).sum())
        rows.append((bad / g.size, name, p, float(jnp.linalg.norm(jnp.where(jnp.isfinite(g), g, 0))), bad))
    for share, name, p, norm, bad in sorted(rows, key=lambda row: -row[0]):
        lost = f"{bad} ({share:.0%})" if bad else "0"
        table.add_row(name, f"{float(abs(p).max()):.3g}", str(int((~jnp.isfinite(p)).sum())), f"{norm:.3g}", lost)
    return table


def token_table(i: int, arrays: list[np.ndarray], call: dict, logp: np.ndarray) -> Table:
    """Return a table of a micro-batch's trained tokens with the worst log-probs: not finite ones, then the lowest."""
    weight = arrays[3] + arrays[4] if call["kind"] == "oxa" else arrays[3]  # OXA: both pools
    table = Table(title=f"micro-batch {i}: {int((weight != 0).sum())} trained tokens, the worst")
    columns = ["row", "column", "token", "weight", "log-prob"]
    old = Batch(*arrays).old_logp if call["kind"] == "grpo" else None
    for column in columns + ([] if old is None else ["before the update"]):
        table.add_column(column, justify="right")
    key = np.where(weight != 0, np.where(np.isfinite(logp), logp, -np.inf), np.inf)
    for at in np.argsort(key, axis=None)[:SHOWN]:
        row, column = np.unravel_index(at, key.shape)
        if weight[row, column] != 0:
            cells = [row, column, arrays[0][row, column], f"{weight[row, column]:.3g}", f"{logp[row, column]:.4g}"]
            table.add_row(*map(str, cells + ([] if old is None else [f"{old[row, column]:.4g}"])))
    return table


def main() -> None:
    """Print the tables."""
    f, out = flags.FLAGS, Console(width=None if os.isatty(1) else 120)
    call, batches, c = read(place(f.dump))
    mesh = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    how = dict(dtype=jnp.dtype(f.dtype or c["dtype"]), remat=c["remat"], kernel="auto", lora=c["lora"])
    model = Qwen3(model_config(c["preset"]), **how)
    params = load_params(f.dump, abstract_policy(model, mesh))
    total, terms = None, Table(title="terms of the loss, by micro-batch")
    terms.add_column("term")
    columns = []
    for i, arrays in enumerate(batches):
        try:
            grads, metrics, logp = gradient(model, params, arrays, call)
        except TypeError as error:
            raise UserError(f"{f.dump}/call.json does not say how to call it ({first_line(error)})") from error
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
        terms.add_column(str(i), justify="right")
        columns.append(metrics)
        out.print(token_table(i, arrays, call, logp))
    for name in columns[0]:
        terms.add_row(name.removeprefix("loss/"), *(f"{float(m[name]):.4g}" for m in columns))
    out.print(terms)
    out.print(parameter_table(trained(params), total))
    finite = all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(total))
    out.print(f"in {model.dtype}: the gradient is {'finite' if finite else 'not finite'}")
    if not finite:
        raise SystemExit(1)


if __name__ == "__main__":
    flags.DEFINE_string("dump", None, "RUN/replay/STAGE-STEP", required=True)
    flags.DEFINE_string("dtype", "", "compute in float32 or bfloat16 instead of the run's")
    run_tool(main)
