"""Read a set of questions once, where there is a network, and write it to where a run reads it: a bucket or a disk.

    python -m e3jax.tools.prepare --set=e3-math-easy --to=gs://my-bucket/sets/e3-math-easy
    python -m e3jax.tools.prepare --set=gpqa-diamond --seed=1 --to=gpqa.jsonl          # to look at, or to mend
    python -m e3jax.tools.prepare --chats --set=HuggingFaceTB/smoltalk@train --to=gs://my-bucket/sets/smoltalk

--to ending in .jsonl makes a file of one object a line; any other name makes a directory with an array_record file (a
record a problem, read at random) and set.json. Either is a set's name in a config, e.g.
--config.stages.math.set=gs://…. What is written has no prompt, which is chosen where the set is used. It does have
the order of GPQA's choices, which --seed decides. With --chats the rows are conversations to fine-tune on
(tasks/chats.py), and are written as messages.
"""

import json

from absl import flags
from etils import epath

from e3jax.errors import SEEDS, UserError
from e3jax.flags import run_tool
from e3jax.printable import printable
from e3jax.storage import patiently, place
from e3jax.tasks.chats import as_row, read_chat
from e3jax.tasks.rows import write_prepared
from e3jax.tasks.sets import load_fields, read_all, short_name


def prepare(
    name: str, to: epath.PathLike, *, seed: int = 0, split: str = "", limit: int = 0, chats: bool = False
) -> str:
    """Write the well-formed rows of a set as {"task", "problem", "answer", "difficulty", "meta"}.

    Conversations (`chats`) become {"messages"}. Return what was done, in one line. meta["prepared_from"] is [set, row].
    Raise UserError where the target exists, and as `load_set` does.
    """
    target = place(to)
    if target.exists():
        raise UserError(f"{to} exists: name a new place, or remove it")
    if chats:
        rows = read_all(name, lambda row: read_chat(row.value, columns={}), split=split, limit=limit)
        values = [as_row(chat) for _, chat in rows]
    else:
        values = [
            fields._asdict() | {"meta": {**fields.meta, "prepared_from": [short_name(name), index]}}
            for index, fields in load_fields(name, seed=seed, split=split, limit=limit)
        ]
    if target.suffix == ".jsonl":
        lines = "".join(json.dumps(value, ensure_ascii=False, default=str) + "\n" for value in values)
        patiently(f"make {target.parent}", lambda: target.parent.mkdir(parents=True, exist_ok=True))
        patiently(f"write {target}", lambda: target.write_bytes(lines.encode()))
    else:
        write_prepared(target, values, set=name, split=split, seed=seed, limit=limit)
    return f"{to}: {len(values)} {'conversations' if chats else 'problems'} of {name}"


def main() -> None:
    """Prepare a set as the flags say."""
    f = flags.FLAGS
    done = prepare(f["set"].value, f.to, seed=f.seed, split=f.split, limit=f.limit, chats=f.chats)
    print(printable(done, lines=False))


if __name__ == "__main__":
    flags.DEFINE_string("set", None, "name of a set (tasks/sets.py), hub id or path", required=True)
    flags.DEFINE_string("to", None, "FILE.jsonl or a directory to be made; gs:// too", required=True)
    flags.DEFINE_string("split", "", "of a hub set; empty: the set's usual one")
    flags.DEFINE_bool("chats", False, "rows are conversations to fine-tune on")
    flags.DEFINE_integer("seed", 0, "of the order of choices", 0, SEEDS - 1)
    flags.DEFINE_integer("limit", 0, "rows to read at most; 0: all", 0)
    run_tool(main)
