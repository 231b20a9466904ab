"""Responses are drawn once, kept one by one, and a shorter budget is a prefix of a longer one."""

import zlib

import jax
import numpy as np
import pytest
from etils import epath

from e3jax.checkpoint.pretrained import Pretrained
from e3jax.errors import UserError
from e3jax.eval.scoring import by_problem, count, finished_gb
from e3jax.rewards.extract import Grade
from e3jax.rollout.responses import Request, Response, Responses, fill
from e3jax.sampler.plan import Sampling
from e3jax.tasks.countdown_traces import WORDS
from e3jax.tasks.table import TASKS
from e3jax.tokenizer import WordTokenizer

TOKENIZER = WordTokenizer(WORDS)
PROBLEMS = TASKS["calculator"].open((3,), seed=0, split="test")(0, 5)
PROMPTS = [TOKENIZER.encode(p.question) for p in PROBLEMS]
IDS = [p.id for p in PROBLEMS]


class Graded(list):
    """Stands for grades that are there already."""

    def result(self):
        return list(self)


def half(problems, texts, done):
    """Stands for a grader that depends on every token: half of all texts are right, a cut response never is."""
    right = [d and zlib.crc32(t.encode()) % 2 for t, d in zip(texts, done)]
    return Graded(Grade(float(r), "correct" if r else "wrong_value") for r in right)


@pytest.fixture(scope="module")
def sharp(tiny):
    """Return a model whose logits are spread enough that responses end by themselves."""
    model, params = tiny
    return model, params | {"embed_vd": params["embed_vd"] * 8}


def draw(sharp, directory, *, budget, requests=None, part="response", stop_after=10**9):
    responses, heard = Responses(epath.Path(directory)), []
    responses.check(IDS, PROMPTS)

    def on_finished(finished, tokens):
        heard.append(finished)
        if sum(heard) >= stop_after:
            raise KeyboardInterrupt

    if requests is None:
        requests = [Request(p, (0, 1, 2, 3, 4, 5), prompt, budget) for p, prompt in enumerate(PROMPTS)]
    try:
        fill(
            responses,
            part,
            requests,
            Pretrained(*sharp, TOKENIZER),
            Sampling(temperature=1.0, slots=16, block=8, prefill_rows=4),
            key=jax.random.key(3),
            stop=(*TOKENIZER.stop, 5),
            on_finished=on_finished,
        )
    except KeyboardInterrupt:
        pass
    return responses, sum(heard)


@pytest.fixture(scope="module")
def long(sharp, tmp_path_factory):
    responses, drawn = draw(sharp, tmp_path_factory.mktemp("long"), budget=32)
    assert drawn == 30 and 0 < sum(r.done for r in responses.known.values()) < 30  # both endings occur
    return responses


def test_only_what_is_missing_is_drawn_and_comes_out_the_same(sharp, long, tmp_path, monkeypatch):
    """Guards noise that hangs on the order or the number of the requests; a line that a kill cut."""
    monkeypatch.setattr("e3jax.rollout.responses.AT_ONCE", 12)
    first, drawn = draw(sharp, tmp_path, budget=32, stop_after=7)
    assert 7 <= drawn == len(first.known) < 30
    (file,) = tmp_path.iterdir()
    text = file.read_text()
    file.write_text(text[:-40])  # killed inside the last line
    again, more = draw(sharp, tmp_path, budget=32)
    assert more == 30 - (drawn - 1)
    assert again.known == long.known == Responses(epath.Path(tmp_path)).known
    assert draw(sharp, tmp_path, budget=32)[1] == 0


def test_cutting_equals_drawing_at_the_shorter_budget(sharp, long, tmp_path):
    """The claim of the whole evaluation, with the sampler itself: same keys and a limit of 12 give the first 12 tokens,
    and both columns of scores are those of the generation at 12.
    """
    short, _ = draw(sharp, tmp_path, budget=12)
    for key, r in short.known.items():
        assert r.tokens == long.known[key].tokens[:12]
        assert r.done == (long.known[key].done and len(long.known[key].tokens) <= 12)
    counted = [
        count(
            PROBLEMS,
            by_problem(x.known, "response", 5, range(6)),
            decode=TOKENIZER.decode,
            grade=half,
            budgets=budgets,
            on_graded=lambda n: None,
        )
        for x, budgets in ((long, (12, 32)), (short, (12,)))
    ]
    columns = [
        (np.array([finished_gb(c, b)[:, 0] for c in cs]), np.array([c.right_cut_gb[:, 0] for c in cs]))
        for cs, b in zip(counted, ((12, 32), (12,)))
    ]
    np.testing.assert_array_equal(columns[0], columns[1])
    assert 0 < columns[0][0].sum() < columns[0][1].sum()  # a cut text may be right, an unfinished one is not


def test_going_on_from_a_prefix_is_the_same_draw(sharp, long, tmp_path):
    """Guards against noise that is used twice, or starts again, when a response is continued (budget forcing)."""
    keys = [k for k, r in long.known.items() if len(r.tokens) > 12]
    requests = [Request(p, (g,), [*PROMPTS[p], *long.known["response", p, g].tokens[:12]], 20) for _, p, g in keys]
    more, _ = draw(sharp, tmp_path, budget=0, requests=requests, part="more")
    for part, p, g in keys:
        assert more.known["more", p, g].tokens == long.known[part, p, g].tokens[12:]


def test_files_that_are_not_what_they_should_be(tmp_path):
    responses = Responses(epath.Path(tmp_path))
    responses.add({("response", 1, 0): Response((4, 5, 1), True)}, ["p1"], ["text"])
    again = Responses(epath.Path(tmp_path))
    assert again.known == {("response", 1, 0): Response((4, 5, 1), True)}
    again.check(["p0", "p1"])
    with pytest.raises(UserError, match="problem 1 was 'p1' and is now 'other': the set has changed"):
        again.check(["p0", "other"])
    file = tmp_path / "00000.jsonl"
    file.write_text("half a line\n" + file.read_text())
    with pytest.raises(UserError, match=r"00000.jsonl line 1 is not a response"):
        Responses(epath.Path(tmp_path))


def test_a_bucket_gets_whole_files(tmp_path, monkeypatch):
    """A bucket cannot append, so every half minute what has finished since becomes a new file."""
    monkeypatch.setattr("e3jax.rollout.responses.is_bucket", lambda path: True)
    responses = Responses(epath.Path(tmp_path / "b"))
    responses.add({("response", 0, 0): Response((4,), False)}, ["p0"], [""])
    assert not (tmp_path / "b").exists()
    responses.flushed -= 60
    responses.add({("response", 0, 1): Response((5,), False)}, ["p0"], [""])
    responses.add({("response", 1, 0): Response((6,), True)}, ["p1"], [""])
    responses.flush()
    assert [len(f.read_text().splitlines()) for f in sorted((tmp_path / "b").iterdir())] == [2, 1]
    assert Responses(epath.Path(tmp_path / "b")).known == responses.known
