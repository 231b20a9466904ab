"""One name for a model; fine-tuning on conversations and RL with an own reward, as a new user would: from rows of a
file to the trainer's loss, which is transformers' loss on the same masks."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_hub import like_of, write_chat_model
from tiny_text import QWEN3

from configs import my_eval, my_grpo, my_sft
from configs.common import base_config, chats_stage
from e3jax.errors import UserError
from e3jax.eval.run import main as evaluate
from e3jax.metrics.names import undefined, undefined_fields
from e3jax.train.chats import encode_all, make_batch, read_chats
from e3jax.train.check import check
from e3jax.train.curriculum import main
from e3jax.train.named_model import spelled_out
from e3jax.train.settings import resolve

pytest.importorskip("transformers", reason="real tokenizers need pip install -e '.[hf]'")
CHATS = [
    {"messages": [{"role": "user", "content": f"What is {i}+1?"}, {"role": "assistant", "content": f"{i + 1}"}]}
    for i in range(9)
]
THOUGHT = {"prompt": "What is 1+1?", "response": "<think>\nThe answer is 7.\n</think>\n\n2"}
REWARD = "def is_short(completions, **columns):\n    return [len(c) < 20 for c in completions]\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Write a tiny random Qwen3 with a tokenizer and chat template of its kind."""
    return write_chat_model(tmp_path_factory.mktemp("model"), template=QWEN3)


def sft_config(model, data):
    """The config of docs/your-own.md, made small."""
    c = my_sft.get_config()
    c.model.name, c.stages.sft.data = str(model), str(data)
    c.stages.sft.steps, c.stages.sft.per_step, c.stages.sft.row_length, c.stages.sft.held_out = 2, 4, 64, 2
    c.checkpoint.every, c.log.tensorboard = 1, False
    return c


@pytest.fixture(scope="module")
def tuned(model, tmp_path_factory):
    """Return a run of fine-tuning on ten conversations in two forms."""
    where = tmp_path_factory.mktemp("sft")
    (where / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (*CHATS, THOUGHT)))
    main(sft_config(model, where / "chats.jsonl"), str(where / "run"))
    return where


def lines(run, name):
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def without_times(line: dict) -> dict:
    return {name: value for name, value in line.items() if not name.startswith(("time/", "memory/"))}


def test_fine_tuning_from_a_file(model, tuned):
    """Two steps log a loss near that of random guesses, and the held-out one; a resume makes the same numbers."""
    (line,) = lines(tuned / "run", "metrics.jsonl")
    assert (line["stage"], line["kind"], line["step"]) == ("sft", "sft", 2) and (tuned / "run/DONE").exists()
    size = json.loads((model / "config.json").read_text())["vocab_size"]
    for name in ("loss/total", "loss/held_out"):
        assert line[name] == pytest.approx(np.log(size), rel=0.15)
    assert not undefined("sft", line.keys() - {"stage", "kind", "step", "global_step"})
    assert json.loads((tuned / "run/config.json").read_text())["model"]["name"] == str(model)
    shutil.rmtree(tuned / "run/checkpoints/sft/2")
    (tuned / "run/DONE").unlink()
    main(sft_config(model, tuned / "chats.jsonl"), str(tuned / "run"))
    (again,) = lines(tuned / "run", "metrics.jsonl")
    assert without_times(again) == without_times(line)


def test_rl_with_an_own_reward(tuned, tmp_path, monkeypatch):
    """From the checkpoint by its name alone, on questions without answers; the reward's mean is logged by its name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rewards.py").write_text(REWARD)
    (tmp_path / "questions.csv").write_text("question\nWhat is 1+1?\nWhat is 2+1?\n")
    c = my_grpo.get_config()
    c.model.name, c.task.reward = str(tuned / "run/checkpoints/sft/2"), "my_rewards.py:is_short"
    c.stages.rl.set, c.stages.rl.steps, c.stages.rl.budget = "questions.csv", 2, 12
    c.grpo.prompts, c.grpo.group_size = 2, 4
    c.sampler.slots, c.log.tensorboard = 8, False
    main(c, str(tmp_path / "run"))
    steps = lines(tmp_path / "run", "metrics.jsonl")
    assert [x["step"] for x in steps] == [1, 2] and all(x["reward/mean"] == x["reward/own/is_short"] for x in steps)
    assert not undefined("grpo", steps[0].keys() - {"stage", "kind", "step", "global_step"})
    sample = lines(tmp_path / "run", "samples.jsonl")[0]
    assert sample["prompt"].startswith("<|im_start|>user\nWhat is ") and sample["prompt"].endswith("assistant\n")
    assert "boxed" not in sample["prompt"] and sample["reason"] == "own"


def test_an_evaluation_with_an_own_grader(model, tuned, tmp_path, monkeypatch):
    """Before and after on questions without answers; with another grader the same responses are graded again."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rewards.py").write_text(REWARD)
    (tmp_path / "questions.csv").write_text("question\nWhat is 1+1?\nWhat is 2+1?\n")
    c = my_eval.get_config(f"before={model},after={tuned / 'run/checkpoints/sft/2'}")
    c.sets.mine.source, c.reward = "questions.csv", "my_rewards.py:is_short"
    c.budgets, c.sampler.slots = (8, 12), 8
    evaluate(c, str(tmp_path / "run"))
    rows = lines(tmp_path / "run", "eval.jsonl")
    assert [(x["stage"], x["set"], x["problems"], x["samples"]) for x in rows] == [
        ("before", "mine", 2, 4),
        ("after", "mine", 2, 4),
    ]
    assert not undefined_fields("eval.jsonl", rows[0])
    kept = sorted((path, path.read_bytes()) for path in (tmp_path / "run/responses").rglob("*.jsonl"))
    texts = [json.loads(line)["text"] for path, content in kept for line in content.decode().splitlines()]
    assert len(texts) == 16 and np.mean([x["reward"][0] for x in rows]) == np.mean([len(x) < 20 for x in texts])
    (tmp_path / "my_rewards.py").write_text(REWARD.replace("< 20", ">= 20"))
    evaluate(c, str(tmp_path / "run"))
    again = lines(tmp_path / "run", "eval.jsonl")
    assert [x["reward"][0] + y["reward"][0] for x, y in zip(rows, again, strict=True)] == [1.0, 1.0]
    assert kept == sorted((path, path.read_bytes()) for path in (tmp_path / "run/responses").rglob("*.jsonl"))
    c.reward = "absent.py:is_short"
    with pytest.raises(UserError, match=r"config\.reward='absent\.py:is_short': absent\.py does not exist in"):
        evaluate(c, str(tmp_path / "other"))


# ---- the data of a stage


def quiet_run(config, said: list[str]):
    """Return what reading a stage's data needs of a run."""
    from e3jax.checkpoint.pretrained import load_tokenizer, model_config

    s = resolve(config)
    phase = SimpleNamespace(__enter__=None, advance=lambda n: None)

    class Phase:
        def __enter__(self):
            return phase

        def __exit__(self, *_):
            return None

    log = SimpleNamespace(say=said.append, phase=lambda *_, **__: Phase())
    tokenizer = load_tokenizer(s.tokenizer, model_config(s.model.preset))
    return SimpleNamespace(settings=s, seed=s.seed, tokenizer=tokenizer, log=log), s.stages[0]


def test_the_loss_is_that_of_transformers(model, tuned):
    """On the same masks to 1e-4: packed in micro-batches here, an example a row there."""
    torch = pytest.importorskip("torch", reason="transformers' loss needs pip install -e '.[parity]'")
    import jax
    from tiny_hub import transformers_model

    from e3jax.checkpoint.hf import load_hf
    from e3jax.train.chats import loss_part

    said = []
    run, stage = quiet_run(sft_config(model, tuned / "chats.jsonl"), said)
    examples = encode_all(run, stage, read_chats(run, stage))
    assert said == [f"sft: 10 conversations of {tuned / 'chats.jsonl'}, read 9 as messages; 1 as prompt, response"]
    ours, like = like_of(model)
    params = load_hf(model, like)
    loss = sum(float(loss_part(ours, params, *micro, chunk=64)) for micro in make_batch(run, stage, examples))
    theirs, total, count = transformers_model(model), 0.0, 0
    for tokens, trained in examples:
        labels = torch.tensor(np.where(trained, tokens, -100)[None]).long()
        with torch.no_grad():
            mean = theirs(torch.tensor(tokens[None]).long(), labels=labels).loss.item()
        total, count = total + mean * trained.sum(), count + trained.sum()
    assert loss == pytest.approx(total / count, abs=1e-4) and jax.device_count() == 8


def test_what_the_log_says_of_rows(model, tmp_path):
    """Longer examples are left out or cut, malformed rows counted, columns named by the config said."""
    rows = [*[{"Frage": "What is 1+1?", "Antwort": "2"}] * 30, {"Frage": "x " * 200, "Antwort": "2"}, {"Frage": "a"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    c, said = sft_config(model, tmp_path / "rows.json"), []
    c.stages.sft.columns = "prompt=Frage,response=Antwort"
    run, stage = quiet_run(c, said)
    assert len(encode_all(run, stage, read_chats(run, stage))) == 30
    assert said[0].startswith("sft: 31 conversations") and said[0].endswith("read 31 as prompt, response")
    assert said[1:] == [
        "sft: columns prompt=Frage,response=Antwort, as the config names them",
        "sft: left out 1 examples of more than row_length=64 tokens",
    ]
    c.stages.sft.longer, c.stages.sft.train_on = "cut", "everything"
    run, stage = quiet_run(c, said)
    longest = max(len(x.tokens) for x in encode_all(run, stage, read_chats(run, stage)))
    assert longest == 64 and said[-1] == "sft: cut 1 examples of more than row_length=64 tokens"
    c.stages.sft.train_on, c.stages.sft.row_length = "answers", 32
    run, stage = quiet_run(c, said)
    assert len(encode_all(run, stage, read_chats(run, stage))) == 30
    assert said[-1] == (
        "sft: cut 1 examples of more than row_length=32 tokens; left out 1 of them, whose answers lie behind that"
    )
    c.stages.sft.longer, c.stages.sft.row_length = "drop", 2
    with pytest.raises(UserError, match=r"config\.stages\.sft\.row_length=2: no example fits, raise it"):
        run, stage = quiet_run(c, said)
        encode_all(run, stage, read_chats(run, stage))
    c.stages.sft.template = "none"
    (tmp_path / "rows.json").write_text(json.dumps(CHATS))
    c.stages.sft.columns = ""
    with pytest.raises(UserError, match="template='none' takes a prompt and a response as texts, this is messages"):
        run, stage = quiet_run(c, said)
        encode_all(run, stage, read_chats(run, stage))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(data="chats"), "config.stages.sft.data='chats': use one of"),
        (dict(data="none.jsonl"), "config.stages.sft.data='none.jsonl': does not exist: name a file"),
        (dict(template="chatml"), "config.stages.sft.template='chatml': use one of 'chat', 'none'"),
        (dict(train_on="assistant"), "config.stages.sft.train_on='assistant': use one of 'answers', 'everything'"),
        (dict(columns="frage=Frage"), "config.stages.sft.columns='frage=Frage': name messages=COLUMN, or"),
        (dict(held_out=-1), "config.stages.sft.held_out=-1"),
        (dict(per_step=0), "config.stages.sft.per_step=0"),
        (dict(row_length=50_000), "config.stages.sft.row_length=50000: the model has room for 40960"),
    ],
)
def test_impossible_stages_are_named(model, fields, words):
    c = sft_config(model, "chats.jsonl")
    c.stages.sft.update(fields)
    with pytest.raises(UserError, match=words):
        check(c)


def words_config():
    """Return a config of the closed vocabulary with a stage on conversations."""
    c = base_config()
    sizes = dict(steps=1, lr=1e-3, warmup=0, per_step=1, rows=8, row_length=64)
    c.order, c.stages.sft = ("sft",), chats_stage(data="x.jsonl", **sizes)
    return c


def test_what_a_stage_compiles_and_costs():
    """The tools that say whether a stage fits know its programs: micro-batches whose gradients are added."""
    import jax

    from e3jax.tools.chips import CHIPS
    from e3jax.tools.cost import supervised_step
    from e3jax.tools.programs import supervised_programs

    c = words_config()
    c.model.attention = "xla"
    programs = supervised_programs(resolve(c), "sft", jax.devices())
    assert [p.name for p in programs] == ["gradient", "add", "apply"]
    assert programs[0].lower().out_info[1].keys() == {"loss/total", "loss/entropy"}
    assert programs[1].lower() and supervised_step(c, "sft", CHIPS["v5e"], chips=1, length=50.0).tokens == 50


def test_words_have_no_chat_template():
    """The closed vocabulary is fine-tuned on texts as they are."""
    c = words_config()
    with pytest.raises(UserError, match=r"stages\.sft\.template='chat': tokenizer='words' has no chat template"):
        check(c)


def test_a_tokenizer_without_a_chat_template(model, tuned):
    """A base model has none: ChatML can be put in its place, which has to end where the model ends."""
    c, said = sft_config(model, tuned / "chats.jsonl"), []
    run, stage = quiet_run(c, said)
    run.tokenizer.hub.chat_template = None
    chats = read_chats(run, stage)
    with pytest.raises(
        UserError, match=r"config\.stages\.sft\.template='chat': the tokenizer has no chat template: use"
    ):
        encode_all(run, stage, chats)
    c.task.chat = "plain"
    run, stage = quiet_run(c, said)
    run.tokenizer.hub.chat_template = None
    first = encode_all(run, stage, chats)[0]
    assert run.tokenizer.hub.decode(first.tokens.tolist(), skip_special_tokens=False) == (
        "<|im_start|>user\nWhat is 0+1?<|im_end|>\n<|im_start|>assistant\n1<|im_end|>"
    )


# ---- one name


def test_a_name_sets_four_fields(model, tuned):
    """A directory and a checkpoint of a run bring all; a preset is a shape; no name leaves the fields as they are."""
    c = my_sft.get_config()
    for name in (str(model), str(tuned / "run/checkpoints/sft/2")):
        c.model.name = name
        s = spelled_out(c.to_dict())
        assert s["model"]["preset"] == s["tokenizer"] == s["init"]["init_from"] == name
        assert s["model"]["dtype"] == "float32" and s["init"]["number_embeddings"] is False
    c.init.init_from = "runs/x/checkpoints/sft/9"  # goes on from there
    assert spelled_out(c.to_dict())["init"]["init_from"] == "runs/x/checkpoints/sft/9"
    c.init.init_from = ""
    c.model.name = "qwen3-0.6b"
    s = spelled_out(c.to_dict())
    assert (s["model"]["preset"], s["tokenizer"], s["init"]["init_from"]) == ("qwen3-0.6b", "words", "")
    c.model.name = ""
    assert spelled_out(c.to_dict()) == c.to_dict() | {"model": c.model.to_dict() | {"dtype": "float32"}}


def test_a_named_model_computes_in_bfloat16_on_accelerators(model, monkeypatch):
    """Unless the config says otherwise; a CPU is slow in bfloat16."""
    c = my_sft.get_config()
    c.model.name = str(model)
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    assert spelled_out(c.to_dict())["model"]["dtype"] == "bfloat16"
    c.model.dtype = "float32"
    assert spelled_out(c.to_dict())["model"]["dtype"] == "float32"
    c.model.name, c.model.dtype = "", "auto"
    assert spelled_out(c.to_dict())["model"]["dtype"] == "float32"


def test_a_checkpoint_of_the_closed_words(checkpoint):
    """Its tokens are words of the task, so that RL from a tiny base needs one name."""
    c = base_config()
    c.model.name = str(checkpoint)
    s = spelled_out(c.to_dict())
    assert s["tokenizer"] == "words" and s["init"] == {"number_embeddings": True, "init_from": str(checkpoint)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(tokenizer="Qwen/Qwen3-0.6B"), "sets config.tokenizer too, which is 'Qwen/Qwen3-0.6B' here"),
        (lambda c: c.model.update(preset="small"), "sets config.model.preset too, which is 'small' here"),
        (
            lambda c: c.model.update(name="smalll"),
            "^config.model.name='smalll': model 'smalll' is neither a dir.*, smollm2-1.7b\n  config.stages.sft.data",
        ),
    ],
)
def test_a_name_beside_a_field_that_says_otherwise_is_refused(model, change, words):
    """Which of the two counted would be a guess."""
    c = my_sft.get_config()
    c.model.name = str(model)
    change(c)
    with pytest.raises(UserError, match=words):
        check(c)
