"""A run directory in a bucket: what the trainer relies on, in separate processes, against an emulator on localhost."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from gcs_emulator import Emulator, emulated_bucket

from benchmarks.faults import Command, difference, run_to_end
from e3jax.tools.convert import convert

ROOT = Path(__file__).parent.parent
NEEDED = ("gcp_storage_emulator", "gcsfs")

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NEEDED),
    reason="needs gcp-storage-emulator and gcsfs: pip install -e '.[test]'",
)

PRELUDE = """
import jax, jax.numpy as jnp, numpy as np
import orbax.checkpoint as ocp
from etils import epath
run = epath.Path("{url}/run")
state = {{"params": {{"w": jnp.arange(6.0).reshape(2, 3)}}, "step": jnp.int32(7)}}
like = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
manager = ocp.CheckpointManager(run / "checkpoints/easy", options=ocp.CheckpointManagerOptions(max_to_keep=2))
"""


@pytest.fixture
def bucket(tmp_path):
    with emulated_bucket(tmp_path) as bucket:
        yield bucket


def output(bucket: Emulator, code: str) -> str:
    """Return the output of `code` after the prelude, in a process that sees the bucket."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE.format(url=bucket.url) + code],
        cwd=ROOT,
        env=os.environ | bucket.env | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def test_checkpoints_of_one_process_are_restored_by_another(bucket):
    """tensorstore writes the arrays, gcsfs the rest: were one not led to the bucket, nothing would be restored."""
    saving = """
for step in (1, 2, 3):
    manager.save(step, args=ocp.args.StandardSave(state))
manager.close()
(run / "config.json").write_text("σ")
(run / "config.json.new").write_text("σ×")
(run / "config.json.new").replace(run / "config.json")
"""
    output(bucket, saving)
    restoring = """
restored = manager.restore(3, args=ocp.args.StandardRestore(like))
same = jax.tree.map(np.array_equal, restored, state)
print(manager.all_steps(), all(jax.tree.leaves(same)), (run / "config.json").read_text())
print(sorted(path.name for path in run.iterdir()))
"""
    assert output(bucket, restoring) == "[2, 3] True σ×\n['checkpoints', 'config.json']"


def test_a_save_that_was_killed_before_its_commit_is_no_checkpoint(bucket):
    """A bucket has no atomic rename of directories: without commit_success.txt a half-written step would be resumed."""
    killed = """
import os, signal
from orbax.checkpoint._src.path import async_path
for step in (1, 2):
    manager.save(step, args=ocp.args.StandardSave(state))
    manager.wait_until_finished()
    write_text = async_path.write_text
    async def killed_at_commit(path, *args, **kwargs):
        if path.name == "commit_success.txt" and path.parent.name == "2":
            print([p.name for p in path.parent.iterdir()], flush=True)
            os._exit(0)
        return await write_text(path, *args, **kwargs)
    async_path.write_text = killed_at_commit
"""
    assert output(bucket, killed) == "['_CHECKPOINT_METADATA', 'default']"
    resumed = """
print(manager.all_steps(), manager.latest_step())
manager.save(2, args=ocp.args.StandardSave(state))
manager.wait_until_finished()
print(manager.all_steps())
(run / "checkpoints/easy/2/commit_success.txt").unlink()
manager.reload()
print(manager.all_steps())
"""
    assert output(bucket, resumed) == "[1] 1\n[1, 2]\n[1]"


def test_a_run_in_a_bucket_is_killed_and_goes_on(bucket, tmp_path):
    """The real command, all of it in the bucket; against the same run on local disk.

    Guards: appending, which overwrites there; records behind their checkpoint; a report that looks on local disk.
    """
    order = (
        "--config.order=('base','easy')",
        "--config.stages.easy.steps=16",
        "--config.stages.base.steps=10",
        "--config.checkpoint.every=4",
        "--config.stages.base.evaluated=False",
    )
    run_to_end(tmp_path / "local", *order)
    first = Command(f"{bucket.url}/run", *order, env=bucket.env)
    saved = bucket.directory / "objects/.cloudstorage/bucket/run/checkpoints/easy/4/commit_success.txt"
    assert first.wait_for(saved.exists), first.said
    first.kill()
    run_to_end(f"{bucket.url}/run", *order, env=bucket.env)
    download = """
for name in ("metrics", "eval", "samples", "eval_samples", "starts"):
    path = epath.Path("{there}") / f"{name}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((run / path.name).read_bytes())
print((run / "DONE").exists(), b"<svg" in (run / "report.html").read_bytes(), len(list((run / "tb").iterdir())) > 1)
from e3jax.report.serve import Pages
pages = Pages(run)
print(pages.read("samples.html") == (run / "samples.html").read_bytes(), b"<svg" in pages.read("report.html"))
"""
    assert output(bucket, download.replace("{there}", str(tmp_path / "bucket"))) == "True True True\nTrue True"
    (tmp_path / "bucket/budget.jsonl").write_text("")
    (tmp_path / "local/budget.jsonl").write_text("")
    assert not (found := difference(tmp_path / "local", tmp_path / "bucket")), found
    assert len((tmp_path / "bucket/starts.jsonl").read_text().splitlines()) == 2


def test_one_job_writes_a_bucket(bucket):
    """The lock of e3jax/lock.py, by preconditions: refused, renewed, taken over when stale, won by one of many."""
    there = """
import threading, time
from e3jax import lock
from e3jax.errors import UserError
lock.BEAT_S, lock.STALE_S, lock.POLL_S = 0.3, 4.0, 0.1
def elsewhere():
    return lock.text_of(lock.this_process()._replace(host="other", machine="another boot", pid=7))
at, said, lost = lock.BucketLock(run), [], []
mine = lock.hold(run, say=said.append, lost=lost.append)
first = at.read()
time.sleep(1)
print(said, at.read().version != first.version, at.swap(first.version, elsewhere()))
mine.release()
print(at.read(), at.swap("", elsewhere()), at.swap("", elsewhere()))
renewing = threading.Timer(0.5, lambda: at.renew(at.read(), at.fs.cat_file(str(run / lock.NAME)).decode()))
renewing.start()
try:
    lock.hold(run, say=said.append, lost=lost.append)
except UserError as error:
    print("process 7 on other" in str(error))
mine = lock.hold(run, say=said.append, lost=lost.append)
print("was taken by process 7 on other" in said[-1] and "last heard of" in said[-1])
stale, won = at.read(), []
threads = [threading.Thread(target=lambda: won.append(at.swap(stale.version, elsewhere()))) for _ in range(8)]
mine.over.set()
stale = at.read()
for t in threads: t.start()
for t in threads: t.join()
print(sum(won))
mine.over.clear()
mine.beat()
print(len(lost), "no longer this job's" in lost[0])
lock.HELD.clear()
assert at.swap(at.read().version, "")
from e3jax.log import RunLog
log = RunLog(run, {}, tensorboard=False, wandb="")
print(at.read().holder == log.lock.holder)
log.close()
print(at.read(), sorted(p.name for p in run.iterdir()))
"""
    said = output(bucket, there)
    assert said == "[] True False\nNone True False\nTrue\nTrue\n1\n1 True\nTrue\nNone ['config.json', 'starts.jsonl']"


def test_a_model_in_a_bucket(bucket, checkpoint, tmp_path):
    """Weights and tokenizer, converted and copied there, are what a pod without a network starts from."""
    convert(str(checkpoint), tmp_path / "model")
    loading = """
from pathlib import Path
from e3jax.checkpoint.pretrained import load_pretrained
from e3jax.errors import UserError
from e3jax.sharding import make_mesh
for name, here in (("model", Path("{model}")), ("safetensors", Path("{checkpoint}"))):
    for file in here.rglob("*"):
        if file.is_file():
            (run / name / str(file.relative_to(here))).write_bytes(file.read_bytes())
mesh = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
here, there = (load_pretrained(name, dtype="float32", mesh=mesh) for name in ("{model}", str(run / "model")))
same = jax.tree.map(np.array_equal, here.params, there.params)
print(all(jax.tree.leaves(same)), there.tokenizer.decode(there.tokenizer.encode("7 5 2")), here.model == there.model)
try:
    load_pretrained(str(run / "safetensors"), dtype="float32", mesh=mesh)
except UserError as error:
    print(error)
""".replace("{model}", str(tmp_path / "model")).replace("{checkpoint}", str(checkpoint))
    first, second = output(bucket, loading).splitlines()
    assert first == "True 7 5 2 True"
    assert "safetensors are read from a local disk or the hub only" in second


def test_the_emulator_keeps_googles_promises(bucket):
    """Otherwise the tests prove little: of two writes that raced both would succeed, and half an upload would stay."""
    checking = """
import socket, urllib.error, urllib.request, os
host = os.environ["STORAGE_EMULATOR_HOST"]
def post(name, query=""):
    url = f"{host}/upload/storage/v1/b/bucket/o?uploadType=media&name={name}{query}"
    try:
        return urllib.request.urlopen(urllib.request.Request(url, data=b"x")).status
    except urllib.error.HTTPError as error:
        return error.code
print(post("a", "&ifGenerationMatch=0"), post("a", "&ifGenerationMatch=0"), post("a"))
with socket.create_connection(host.removeprefix("http://").split(":")) as half:
    path = "/upload/storage/v1/b/bucket/o?uploadType=media&name=half"
    half.sendall(f"POST {path} HTTP/1.1\\r\\nContent-Length: 9\\r\\n\\r\\nxxx".encode())
    half.shutdown(socket.SHUT_WR)
    half.recv(1)
print(sorted(path.name for path in run.parent.iterdir()))
"""
    assert output(bucket, checking) == "200 412 200\n['a']"
    bucket.stop()
    bucket.start()
    assert output(bucket, 'print((run.parent / "a").read_text())') == "x"
