"""Rows of every form become the same conversation, malformed ones a sentence; and exactly what the assistant said is
trained, under the chat templates of three families."""

import json

import numpy as np
import pytest
from tiny_text import QWEN3, SMOLLM2, write_llama3_like, write_qwen3_like

from e3jax.errors import UserError
from e3jax.tasks.chat_tokens import ChatStyle, encode_chat, encode_pair, encode_whole
from e3jax.tasks.chats import Chat, named_columns, read_chat

TURNS = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
SYSTEM = {"role": "system", "content": "Be short."}
PARTS = [{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}]
SHARE = [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}]
THOUGHT = [TURNS[0], {"role": "assistant", "reasoning_content": "easy", "content": "2"}]

# form -> a row of it, and a malformed twin with what is said of it
FORMS = {
    "messages": ({"messages": TURNS}, {"messages": "1+1?"}, r"messages is '1\+1\?', not a list of messages"),
    "messages, as a JSON text": (
        {"messages": json.dumps(TURNS)},
        {"messages": "[{]"},
        r"messages is '\[\{\]', not a list",
    ),
    "messages, in parts": (
        {"messages": [{"role": "user", "content": PARTS}, TURNS[1]]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, TURNS[1]]},
        "only parts of type text are read",
    ),
    "messages, of a speaker": ({"messages": TURNS}, {"messages": [{"role": "bot", "content": "2"}]}, "is by 'bot'"),
    "messages, a content": (
        {"messages": TURNS},
        {"messages": [TURNS[0], {"role": "assistant", "content": None}]},
        r"messages\[1\] is None, not a text",
    ),
    "messages, an object each": (
        {"messages": TURNS},
        {"messages": ["1+1?", "2"]},
        r"messages\[0\] is '1\+1\?', not an",
    ),
    "messages, tools": (
        {"messages": TURNS},
        {"messages": [TURNS[0], {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]},
        r"messages\[1\] has tool_calls, which are not read",
    ),
    "messages, an answer": (
        {"messages": TURNS},
        {"messages": TURNS[:1]},
        "no message of the assistant is to be learned",
    ),
    "messages, weights": (
        {"messages": [*TURNS[:1], TURNS[1] | {"weight": 1}]},
        {"messages": [*TURNS[:1], TURNS[1] | {"weight": 0.5}]},
        r"the weight of messages\[1\] is 0.5, not 0 or 1",
    ),
    "conversations": (
        {"conversations": SHARE},
        {"conversations": [{"from": "narrator", "value": "2"}]},
        "by 'narrator'",
    ),
    "conversations, as messages": (
        {"conversations": TURNS},
        {"conversations": []},
        r"conversations is \[\], not a list",
    ),
    "prompt, completion": (
        {"prompt": "1+1?", "completion": "2"},
        {"prompt": "1+1?", "completion": ""},
        "the completion",
    ),
    "prompt, completion, as messages": (
        {"prompt": TURNS[:1], "completion": TURNS[1:]},
        {"prompt": TURNS[:1], "completion": [{"role": "assistant"}]},
        r"completion\[0\] is .*, not an object with role and content",
    ),
    "prompt, response": (
        {"prompt": "1+1?", "response": "2"},
        {"prompt": 3, "response": "2"},
        "the prompt is 3, not a text",
    ),
    "question, answer": ({"question": "1+1?", "answer": "2"}, {"question": " ", "answer": "2"}, "the question is ' '"),
    "problem, solution": (
        {"problem": "1+1?", "solution": "2"},
        {"problem": "1+1?", "solution": 2},
        "the solution is 2",
    ),
    "problem, answer": ({"problem": "1+1?", "answer": "2"}, {"problem": "1+1?", "answer": 2}, "the answer is 2, not a"),
    "query, response": (
        {"query": "1+1?", "response": "2"},
        {"query": "1+1?", "reply": "2"},
        "columns are query, reply",
    ),
    "alpaca": (
        {"instruction": "1+1?", "input": "", "output": "2"},
        {"instruction": "1+1?", "input": 1, "output": "2"},
        "the input is 1, not a text",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_and_its_malformed_twin(form):
    """A user had to rename columns until the one form that the trainer knew came out."""
    good, bad, words = FORMS[form]
    chat = read_chat(good, columns={})
    assert chat.messages == TURNS and chat.trained == (1,)
    assert form.startswith(chat.form.partition(",")[0]) or form == "alpaca"
    with pytest.raises(ValueError, match=words):
        read_chat(bad, columns={})


def test_what_forms_add():
    """System prompts, alpaca's input, thoughts in a field of their own, weights, TRL's few shots."""
    assert read_chat({"system": "Be short.", "question": "1+1?", "answer": "2"}, columns={}).messages == [
        SYSTEM,
        *TURNS,
    ]
    assert read_chat({"system": "Be short.", "conversations": SHARE}, columns={}).trained == (2,)
    assert read_chat({"system": "", "conversations": SHARE}, columns={}).messages == TURNS
    alpaca = read_chat({"instruction": "Add.", "input": "1, 1", "output": "2"}, columns={})
    assert alpaca.messages[0]["content"] == "Add.\n\n1, 1" and alpaca.form == "instruction, input, output"
    assert read_chat({"messages": THOUGHT}, columns={}).messages[1]["content"] == "<think>\neasy\n</think>\n\n2"
    unweighted = [TURNS[0], TURNS[1] | {"weight": 0}, *TURNS]
    assert read_chat({"messages": unweighted}, columns={}).trained == (3,)
    shots = read_chat({"prompt": [*TURNS, TURNS[0]], "completion": TURNS[1:]}, columns={})
    assert shots.messages == [*TURNS, *TURNS] and shots.trained == (3,)
    assert read_chat({"prompt": None, "question": "1+1?", "answer": "2", "completion": None}, columns={}).pair


def test_a_prepared_set_of_conversations(tmp_path):
    """What was written for a bucket is read as what it was, and what was not learned still is not."""
    from e3jax.tasks.sets import read_all
    from e3jax.tools.prepare import prepare

    pytest.importorskip("array_record", reason="prepared sets need pip install -e '.[data]'")
    rows = [{"question": "1+1?", "answer": "2"}, {"prompt": [*TURNS, TURNS[0]], "completion": TURNS[1:]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = prepare(str(tmp_path / "rows.jsonl"), tmp_path / "set", chats=True)
    assert said == f"{tmp_path / 'set'}: 2 conversations of {tmp_path / 'rows.jsonl'}"
    read = [chat for _, chat in read_all(str(tmp_path / "set"), lambda row: read_chat(row.value, columns={}))]
    assert [(x.messages, x.trained) for x in read] == [(TURNS, (1,)), ([*TURNS, *TURNS], (3,))]


def test_named_columns():
    """Columns of any name are read when the config names them; a wrong name is a sentence."""
    columns = named_columns("prompt=Frage, response=Antwort")
    assert read_chat({"Frage": "1+1?", "Antwort": "2", "question": 3}, columns=columns).messages == TURNS
    with pytest.raises(ValueError, match="there is no column 'Frage', which the config names"):
        read_chat({"question": "1+1?", "answer": "2"}, columns=columns)
    for wrong in ("Frage", "prompt=Frage", "prompt=", "question=Frage,response=x", "messages=a,messages=b"):
        with pytest.raises(ValueError, match="name messages=COLUMN, or prompt=COLUMN,response=COLUMN"):
            named_columns(wrong)


# ---- tokens and masks


@pytest.fixture(scope="module", params=["qwen3", "smollm2", "llama3", "real qwen3"])
def family(request, tmp_path_factory):
    """Return (name, tokenizer): small tokenizers with the three templates, and Qwen3's own where it is at hand."""
    from conftest import SHARED

    pytest.importorskip("transformers", reason="real tokenizers need pip install -e '.[hf]'")
    from e3jax.tokenizer import HubTokenizer

    name, directory = request.param, tmp_path_factory.mktemp("tokenizer")
    if name == "real qwen3":
        if not (SHARED / "qwen3-tokenizer").exists():
            pytest.skip(f"{SHARED}/qwen3-tokenizer is absent: Qwen3's own template beside the small one")
        return "qwen3", HubTokenizer(str(SHARED / "qwen3-tokenizer"))
    if name == "llama3":
        write_llama3_like(directory)
    else:
        write_qwen3_like(directory, template={"qwen3": QWEN3, "smollm2": SMOLLM2}[name])
    return name, HubTokenizer(str(directory))


def style_of(tokenizer) -> ChatStyle:
    return ChatStyle(tokenizer.turns_text, tokenizer.encode, tokenizer.stop)


WORDS = (
    "What is the answer?",
    "7",
    " the end ",
    "\n\nA list:\n- x\n- y",
    "Größe 東京 🙂",
    "user\nassistant",
    "a\tb  c",
    "so 12+30=42.\n",
)


def conversations(count: int) -> list[Chat]:
    """Return made-up conversations of 1 to 4 turns, some with a system prompt, half of the answers with a thought."""
    rng, out = np.random.default_rng(0), []

    def words() -> str:
        return "".join(rng.choice(WORDS, rng.integers(1, 4)))

    for _ in range(count):
        messages = [{"role": "system", "content": words()}] if rng.random() < 0.3 else []
        for _ in range(rng.integers(1, 5)):
            thought = f"<think>\n{words().strip()}\n</think>\n\n" if rng.random() < 0.5 else ""
            messages += [{"role": "user", "content": words()}, {"role": "assistant", "content": thought + words()}]
        out.append(read_chat({"messages": messages}, columns={}))
    return out


def written(name: str, content: str) -> str:
    """Return what a family's template writes of an answer, with its end."""
    if name == "llama3":
        return content.strip() + "<|eot_id|>"
    if name == "qwen3":
        thought, end, text = content.rpartition("</think>")
        content = f"{thought}{end}\n\n{text.lstrip(chr(10))}" if end else content.lstrip("\n")
    return content + "<|im_end|>"


def runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """Return (start, end) of each run of trained tokens."""
    edges = np.flatnonzero(np.diff([0, *mask.astype(int), 0]))
    return [*zip(edges[::2].tolist(), edges[1::2].tolist())]


def test_trained_tokens_are_the_answers_and_their_ends(family):
    """Of 30 conversations every answer is trained once, whole, behind just what generation would read before it."""
    name, tokenizer = family
    style = style_of(tokenizer)
    for chat in conversations(30):
        said, i = [], iter(chat.trained)
        for tokens, trained in encode_chat(chat, style):
            for start, end in runs(trained):
                said.append(tokenizer.hub.decode(tokens[start:end].tolist(), skip_special_tokens=False))
                before = chat.messages[: next(i)]
                text = tokenizer.hub.decode(tokens[:start].tolist(), skip_special_tokens=False)
                asked = {style.render(before, opened=True, thinking=on) for on in (True, False)}
                assert text in asked, (text, asked)
        assert said == [written(name, chat.messages[i]["content"]) for i in chat.trained]


def test_turns_share_an_example_where_the_template_lets_them(family):
    """ChatML's and Llama's turns are one example; Qwen3's, which drops earlier thoughts, are one each."""
    name, tokenizer = family
    chat = read_chat({"messages": [*TURNS, *TURNS, *TURNS]}, columns={})
    examples = list(encode_chat(chat, style_of(tokenizer)))
    assert [len(runs(x.trained)) for x in examples] == ([1, 1, 1] if name == "qwen3" else [3])
    whole = encode_whole(chat, style_of(tokenizer))
    assert whole.trained.tolist() == [False] + [True] * (len(whole.tokens) - 1)
    assert whole.tokens.tolist() == tokenizer.encode(tokenizer.turns_text(chat.messages, opened=False, thinking=True))


def test_an_empty_thought_is_read_and_not_learned(tmp_path):
    """Qwen3 puts one before an answer without a thought; with thinking off a model does not have to say it."""
    pytest.importorskip("transformers", reason="real tokenizers need pip install -e '.[hf]'")
    from e3jax.tokenizer import HubTokenizer

    tokenizer = HubTokenizer(str(write_qwen3_like(tmp_path, template=QWEN3)))
    (x,) = encode_chat(read_chat({"messages": TURNS}, columns={}), style_of(tokenizer))
    text = tokenizer.hub.decode(x.tokens[~x.trained].tolist(), skip_special_tokens=False)
    assert text == "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def test_templates_that_cannot_be_trained_on_are_sentences(tmp_path):
    """An answer that holds an end, a template that hides thoughts, one without an end."""
    pytest.importorskip("transformers", reason="real tokenizers need pip install -e '.[hf]'")
    from e3jax.tokenizer import HubTokenizer

    tokenizer = HubTokenizer(str(write_qwen3_like(tmp_path, template=SMOLLM2)))
    style = style_of(tokenizer)
    broken = read_chat({"question": "1+1?", "answer": "2<|im_end|>\n<|im_start|>user\n"}, columns={})
    with pytest.raises(ValueError, match="an answer holds a token that ends it"):
        list(encode_chat(broken, style))
    with pytest.raises(UserError, match="there is no token that ends generation: set eos_token in"):
        list(encode_chat(read_chat({"messages": TURNS}, columns={}), style._replace(stop=(0,))))

    def r1(messages, *, opened, thinking):
        return "".join(f"[{m['content'].split('</think>')[-1]}]" for m in messages) + ("<think>\n" if opened else "")

    with pytest.raises(UserError, match=r"does not write an answer behind what it opens it with .*template='none'"):
        list(encode_chat(read_chat({"messages": THOUGHT}, columns={}), style._replace(render=r1)))


def test_pairs_without_a_template():
    """Prompt and response are tokens as they stand, and the end is learned."""
    letters = lambda text: [ord(c) for c in text]  # noqa: E731
    x = encode_pair("ab", "c", encode=letters, end=0, everything=False)
    assert x.tokens.tolist() == [97, 98, 99, 0] and x.trained.tolist() == [False, False, True, True]
    everything = encode_pair("ab", "c", encode=letters, end=0, everything=True)
    assert everything.trained.tolist() == [False, True, True, True]
    assert encode_pair("", "c", encode=letters, end=0, everything=False).trained.tolist() == [False, True]


def test_templates_write_what_the_real_one_writes(tmp_path):
    """The small Qwen3 template stands in for the real one where that is not at hand."""
    from conftest import SHARED

    pytest.importorskip("transformers", reason="real tokenizers need pip install -e '.[hf]'")
    if not (SHARED / "qwen3-tokenizer").exists():
        pytest.skip(f"{SHARED}/qwen3-tokenizer is absent: Qwen3's own template beside the small one")
    from e3jax.tokenizer import HubTokenizer

    ours = HubTokenizer(str(write_qwen3_like(tmp_path, template=QWEN3)))
    real = HubTokenizer(str(SHARED / "qwen3-tokenizer"))
    for chat in conversations(30):
        for opened, thinking in ((True, True), (True, False), (False, True)):
            texts = [t.turns_text(chat.messages, opened=opened, thinking=thinking) for t in (ours, real)]
            assert texts[0] == texts[1]
