"""Every command that writes a directory, killed at each kind of its writes and given again, ends as if nobody had.

On a disk, where a kill leaves half a line, and in a bucket, where it loses what was not written yet. Training has its
own: tests/test_train_resume.py and tests/test_gcs.py. With real SIGKILLs, at random times: benchmarks/faults.py.
"""

import importlib
import importlib.util
import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import fsspec
import jax
import pytest

pytest.importorskip("transformers", reason="checkpoints' tokenizers need pip install -e '.[hf]'")
from conftest import SLOW
from etils import epath
from gcs_emulator import emulated_bucket
from kills import Killed, Kills

from benchmarks.faults import contents, differing
from e3jax import records
from e3jax.checkpoint.pretrained import load_pretrained
from e3jax.log import RunLog
from e3jax.rewards.extract import Grade
from e3jax.rollout import bench, responses
from e3jax.sharding import make_mesh

MOST = 60  # lives of a command in one place: it has fewer kinds of writes
BUCKET = ("gcp_storage_emulator", "gcsfs")


def by_length(problems, texts, done):
    """Stands for a grader: a random model solves nothing."""
    return SimpleNamespace(
        result=lambda: [
            Grade(float(len(t) % 3 > 0), "made up") if d else Grade(0.0, "truncated") for t, d in zip(texts, done)
        ]
    )


def light(patch, *modules):
    """Use one device, and verdicts that differ."""
    one = lambda **_: make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])  # noqa: E731
    loaded = {}  # a life's model is that of the life before it

    def load_once(name, **how):
        if name not in loaded:
            loaded[name] = load_pretrained(name, **how)
        return loaded[name]

    patch.setattr("e3jax.rewards.workers.GraderPool", lambda **_: nullcontext(SimpleNamespace(submit=by_length)))
    for module in (bench, *modules):
        for name, stub in (("make_mesh", one), ("load_pretrained", load_once), ("keep_programs", lambda: None)):
            if hasattr(module, name):
                patch.setattr(module, name, stub)


# ---- the commands, as small as they come: each is a function of a working directory


def blocks(patch, checkpoint, tmp_path):
    """Return the least that curation does: lines of a block, their sources removed, a line that says "done"."""

    def main(workdir):
        log = RunLog(workdir, {}, tensorboard=False, wandb="")
        if not log.read("done.jsonl"):
            known = {line["index"] for line in log.read("rows.jsonl")}
            for first in (0, 4):
                todo = [i for i in range(first, first + 4) if i not in known]
                if todo:
                    drawn = log.workdir / "responses" / str(first)
                    drawn.mkdir(parents=True, exist_ok=True)
                    (drawn / "drawn.txt").write_text("kept until its lines are")
                    for i in todo:
                        log.append("rows.jsonl", {"index": i, "text": "y" * 20})
                    log.flush()
                    drawn.rmtree()
            log.append("done.jsonl", {"stage": "s"})
        log.write({"table.md": "as many lines as there are"})
        log.done()
        log.close()

    return main


def difficulty(patch, checkpoint, tmp_path):
    from e3jax.curation import difficulty as command

    light(patch, command)
    c = importlib.import_module("configs.difficulty").get_config(f"form=calculator,model={checkpoint}")
    c.set.problems, c.samples, c.budget, c.at_once = 5, 3, 8, 2
    c.sampler.slots, c.sampler.prefill_rows, c.sampler.block = 8, 8, 8
    return lambda workdir: command.main(c, workdir)


def e2c(patch, checkpoint, tmp_path):
    """Return the command; all responses of a random model count as ended and right, and most plans are taken."""
    import tiny_hub
    import tiny_text

    from e3jax.curation import e2c as command

    light(patch, command)
    patch.setattr(
        command,
        "ask",
        lambda *a, real=command.ask, **k: {
            key: (r._replace(done=True), call) for key, (r, call) in real(*a, **k).items()
        },
    )
    patch.setattr(command, "plan_fault", lambda plan, tokens, **_: "long" if tokens > 5 else "")
    patch.setattr(command, "execution_fault", lambda *_, **__: "")
    patch.setattr(command.Drafts, "grade", lambda self, texts: dict.fromkeys(texts, Grade(1.0, "correct")))
    size = tiny_text.write_tokenizer(tmp_path, begin=False)
    tiny_hub.write_tiny(tmp_path, "qwen3-tied", vocab_size=size, eos_token_id=None)
    rows = [{"problem": f"{i}+1?", "answer": 1} for i in "12345"]
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    c = importlib.import_module("configs.e2c_data").get_config(f"tiny={tmp_path}")
    c.sets.math.source, c.sets.math.samples, c.at_once = str(tmp_path / "set.jsonl"), 2, 2
    for phase in command.PHASES:
        c[phase].budget, c[phase].top_p = 3, 1.0
    c.sampler.slots, c.sampler.prefill_rows, c.sampler.block, c.sampler.top_k = 8, 8, 8, 0
    return lambda workdir: command.main(c, workdir)


def pools(patch, checkpoint, tmp_path):
    from e3jax.curation import oxa_sets as command

    light(patch, command)
    c = importlib.import_module("configs.oxa_data").get_config(f"countdown,model={checkpoint}")
    c.set.problems, c.at_once, c.own.samples, c.own.budget = 5, 10, 2, 8
    c.teacher.habits = [{**habits, "most_tokens": 30} for habits in c.teacher.habits[:2]]
    c.promote.high, c.promote.width, c.promote.sigma = 4001.0, 40.0, 500.0  # a random model's
    c.promote.total, c.suppress.total, c.baselines, c.score_tokens = 9, 5, 6, 1024
    c.sampler.slots, c.sampler.prefill_rows, c.sampler.block = 8, 8, 8
    return lambda workdir: command.main(c, workdir)


def evaluation(patch, checkpoint, tmp_path):
    from e3jax.eval import run as command

    light(patch, command)
    c = importlib.import_module("configs.eval_countdown").get_config(f"tiny={checkpoint}")
    c.sets = {"3 numbers": dict(c.sets["3 numbers"].to_dict(), problems=3, samples=2)}
    c.budgets, c.pass_ks, c.train_budget = (4, 8), (1, 2), 4
    c.sampler.slots, c.sampler.prefill_rows, c.sampler.block = 8, 8, 8
    c.forcing.update(early_stop=(4,), wait=(1,), phrases=("no",), thinking=4, extension=4, samples=2, answer=4)
    return lambda workdir: command.main(c, workdir)


def probes(patch, checkpoint, tmp_path):
    """Return the probes, on given responses with attempts, which a random model does not make.

    What is measured on them is drawn.
    """
    import test_eval_probes as fixtures

    from e3jax.eval import probes as command

    light(patch, command)
    c = importlib.import_module("configs.probes").get_config(f"base={checkpoint},e3={checkpoint}/")
    c.sets.probe.update(source=(3,), problems=4, samples=2)
    c.budget, c.tokens = 64, 512
    c.sampler.update(slots=16, prefill_rows=8, block=4)
    c.chains.update(attempts=(0, 1), rollouts=2, completions=2, answer=8, pass_ks=(1, 4))
    c.conditional.update(rollouts=2, attempts=4)

    def main(workdir):
        command.main(c, workdir)

    main.prepare = lambda workdir: fixtures.fill(epath.Path(workdir), c)
    return main


def scaling(patch, checkpoint, tmp_path):
    from e3jax.scaling import run as command

    light(patch, command)
    patch.setattr(command, "answer_of", lambda problem, text: text.split()[-1] if text else None)
    c = importlib.import_module("configs.e2c_countdown_scaling").get_config(f"tiny={plans_checkpoint(tmp_path)}")
    c.sets["3 numbers"].problems, c.sets["3 numbers"].samples, c.ks = 2, 2, (1, 2)
    c.methods = ("greedy", "sc", "all", "random")
    c.sampler.slots, c.sampler.prefill_rows, c.sampler.block = 8, 8, 8
    return lambda workdir: command.main(c, workdir)


def plans_checkpoint(directory):
    import jax.numpy as jnp
    from conftest import write_checkpoint

    from e3jax.models.presets import preset
    from e3jax.models.qwen3 import Qwen3, init_params
    from e3jax.tasks.countdown_plans import WORDS

    model = Qwen3(preset("tiny"), dtype=jnp.float32, remat="none", kernel="xla")
    (directory / "model").mkdir()
    params = jax.jit(init_params, static_argnums=0)(model, jax.random.key(0))
    return write_checkpoint((model, params), directory / "model", WORDS)


def didactic(patch, checkpoint, tmp_path):
    from configs.experiments import pk
    from e3jax.didactic import run as command

    light(patch, command)
    c = pk.get_config()
    c.seeds, c.points, c.budget, c.model.actions = 2, 3, 6, 4
    c.checks.traces, c.checks.policies = 50, 20
    c.settings = {"one": pk.setting(advantage="sign", lr=0.1, updates=6)}
    c.order = ("one",)
    return lambda workdir: command.main(c, workdir)


def train_stub(config, workdir):
    """Write what an experiment reads of a training run, without training."""
    log = RunLog(workdir, config.to_dict(), tensorboard=False, wandb="")
    seed = config.seed + 1
    for stage in config.order:
        kind, steps = config.stages[stage].kind, config.stages[stage].steps
        logged = {line["step"] for line in log.read("metrics.jsonl") if line["stage"] == stage}
        for step in (s for s in range(1, min(steps, 3) + 1) if s not in logged):
            arm = sum(epath.Path(workdir).parent.name.encode())  # runs with equal records are taken for copies
            values = {"length/mean": seed * step + arm, "entropy/mean": 0.5, "reward/mean": 0.1, "loss/ce": 1.0}
            log.metrics(stage, kind, step=step, global_step=step, values=values)
        done = {line["set"] for line in log.read("eval.jsonl") if line["stage"] == stage}
        budgets = {str(b): [0.1 * seed, 0, 1] for b in config.eval.budgets}
        passed = {str(k): [0.1, 0, 1] for k in config.eval.pass_ks}
        for name in (n for n in config.eval.sets if n not in done):
            log.append("eval.jsonl", {"stage": stage, "set": name, "accuracy": budgets, "pass_at_k": passed})
    log.done()
    log.close()


def experiment(patch, checkpoint, tmp_path):
    from e3jax.experiments import plan
    from e3jax.experiments import run as command

    patch.setattr(plan.curriculum, "main", train_stub)
    patch.setattr(plan, "check", lambda config: None)  # of training, for 8 devices
    c = importlib.import_module("configs.experiments.smoke").get_config()

    return lambda workdir: command.main(c, f"{workdir}/smoke")


def oxa(patch, checkpoint, tmp_path):
    from e3jax.experiments import plan
    from e3jax.experiments import run as command

    def sets_stub(config, workdir):
        log = RunLog(workdir, config.to_dict(), tensorboard=False, wandb="")
        log.write({f"sets/{name}.jsonl": "{}\n" for name in ("promote", "suppress")})
        log.done()
        log.close()

    patch.setattr(plan.curriculum, "main", train_stub)
    patch.setattr(plan.oxa_sets, "main", sets_stub)
    patch.setattr(plan, "check", lambda config: None)  # of training, for 8 devices
    c = importlib.import_module("configs.experiments.oxa").get_config()
    c.seeds = (0, 1)
    for name in set(c.arms) - {"sft", "full"}:
        del c.arms[name]
    return lambda workdir: command.main(c, f"{workdir}/oxa")


COMMANDS = (blocks, difficulty, e2c, pools, evaluation, probes, scaling, didactic, experiment, oxa)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """Start an emulated bucket that this process sees."""
    if any(importlib.util.find_spec(name) is None for name in BUCKET):
        pytest.skip("needs gcp-storage-emulator and gcsfs: pip install -e '.[test]'")
    with emulated_bucket(tmp_path_factory.mktemp("bucket")) as emulator, pytest.MonkeyPatch.context() as patch:
        for name, value in emulator.env.items():
            patch.setenv(name, value)
        patch.setitem(fsspec.config.conf, "gcs", {"token": "anon"})  # its variable is read at import
        yield emulator


def lives(main, workdir, kills: Kills, patch, flush_every_s: float) -> int:
    """Give the command, killed at every kind of write once, until it ends; return how often it was killed."""
    if hasattr(main, "prepare"):
        main.prepare(workdir)
    for module in (records, responses):
        patch.setattr(module, "FLUSH_EVERY_S", flush_every_s)
    kills.ended_at.clear()
    for killed in range(MOST):
        try:
            with kills.life():
                main(workdir)
            return killed
        except Killed:
            pass
    raise AssertionError(f"{MOST} lives were not enough: {sorted(kills.ended_at)}")


def undisturbed(command, checkpoint, tmp_path, patch):
    """Return the command, and what it leaves where nobody kills it."""
    (tmp_path / "given").mkdir()
    patch.chdir(Path(__file__).parent.parent)
    main = command(patch, checkpoint, tmp_path / "given")
    if hasattr(main, "prepare"):
        main.prepare(str(tmp_path / "straight"))
    main(str(tmp_path / "straight"))
    return main, contents(tmp_path / "straight")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda f: f.__name__)
def test_killed_at_its_writes_a_command_ends_as_if_nobody_had(command, checkpoint, tmp_path, monkeypatch):
    """Guards: a cut line that swallows the next one, responses that are removed before their lines are written, a line
    that says "done" written before what was done, a file that is written half and read again.
    """
    main, want = undisturbed(command, checkpoint, tmp_path, monkeypatch)
    killed = lives(main, str(tmp_path / "killed"), Kills(monkeypatch), monkeypatch, 30.0)
    assert not differing(contents(tmp_path / "killed"), want) and killed > 5


@pytest.mark.parametrize(
    "command",
    [one if one in (blocks, evaluation) else pytest.param(one, marks=SLOW) for one in COMMANDS],
    ids=lambda f: f.__name__,
)
def test_killed_at_its_writes_in_a_bucket_too(command, bucket, checkpoint, tmp_path, monkeypatch):
    """Guards: a record that a restart overwrites in a bucket, and all of the test above."""
    main, want = undisturbed(command, checkpoint, tmp_path, monkeypatch)
    kills = Kills(monkeypatch)
    for name, flush_every_s in (("often", 0.0), ("seldom", 30.0)):  # each line, and all at the end
        there = f"{bucket.url}/{command.__name__}-{name}"
        killed = lives(main, there, kills, monkeypatch, flush_every_s)
        fsspec.filesystem("gcs").get(there, str(tmp_path / name), recursive=True)
        assert not differing(contents(tmp_path / name, there), want) and killed > 2
