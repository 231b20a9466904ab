r"""Prompt texts, each by the name that a config gives, and Qwen3's chat form around them.

words = PROMPTS["e3"].replace("{problem}", "What is 1+1?")
qwen3_chat(words)          # the whole text that a model reads
"""

import hashlib
from collections.abc import Callable, Sequence

from e3jax.errors import UserError

PROMPTS = {
    # the problem is the whole prompt: Countdown written as a set (curation/difficulty.py)
    "bare": "{problem}",
    # e3's code: its mathematics runs, and DeepScaleR's before it
    "e3": "{problem} Let's think step by step and output the final answer within \\boxed{}.",
    # Qwen's own, on its model cards
    "qwen": "{problem}\nPlease reason step by step, and put your final answer within \\boxed{}.",
    # MathArena's
    "matharena": "{problem}\nPut your final answer within \\boxed{}.",
    # OXA's, in fine-tuning, RL and evaluation
    "oxa": "{problem}\nLet's reason step by step. Enclose the reasoning process within <think>...</think>, then "
    "summarize it and present the final answer within \\boxed{} — for example: <think>reasoning process here</think> "
    "\\boxed{answer here}.",
    # e3 Box B.1: its study of open models
    "open-models": "You will be given a math problem. Solve the problem step by step. Output your final answer in the "
    "form of \\boxed{your answer}. Problem: {problem}",
    # multiple choice (own words: the paper names none)
    "mcq": "{problem}\n\nExactly one choice is right. Please reason step by step, and put its letter within \\boxed{}.",
    # e3 Box E.1: the paper's only prompt of multiplication; it asks for checks (MULT-V's traces were made with it)
    "multiply-check": "Multiply {a} and {b}. Please reason step by step, and put your final answer within \\boxed{}. "
    'At each step, try to verify your response if possible and prefix the line with "Check:". <think>',
    # the same without the request for checks (own choice, the paper is silent on MULT's)
    "multiply": "Multiply {a} and {b}. Please reason step by step, and put your final answer within \\boxed{}.",
    # E2C's, as its test-time scaling asks (what it trained with is not known)
    "e2c": "{problem} Provide the final answer in the boxed{}. Please reasoning step-by-step.",
}

Chat = Callable[..., str]  # the user's words, and the messages before them where there are any -> the whole prompt
LENGTH, TOKENS = " Think for ", " tokens."  # what L1 puts behind a problem, around a number
BARE, BOXED, LETTER = "bare", "qwen", "mcq"  # what a set gets whose prompt is not named


def prompt_text(prompt: str, **values) -> str:
    r"""Return PROMPTS[prompt] with its fields filled in; UserError for another name, or a prompt of other fields.

    >>> prompt_text("matharena", problem="What is $\\frac{1}{2}$ of 4?")
    'What is $\\frac{1}{2}$ of 4?\nPut your final answer within \\boxed{}.'
    """
    need_prompt(prompt, tuple(values))
    text = PROMPTS[prompt]
    for name, value in values.items():
        text = str(value).join(text.split(f"{{{name}}}"))
    return text


def need_prompt(prompt: str, fields: tuple[str, ...]) -> None:
    """Raise UserError unless `prompt` names a prompt that has these fields."""
    fit = [name for name, text in PROMPTS.items() if all(f"{{{x}}}" in text for x in fields)]
    if prompt not in fit:
        raise UserError(f"prompt {prompt!r} is not one for {' and '.join(fields)}: use one of {', '.join(fit)}")


def default_prompt(problem: str, *, choices: bool, graded: bool) -> str:
    r"""Return the name of the prompt that a set gets where none is named: what makes its grader see an answer.

    `graded`: the task's grader reads the response, so a box is asked for, unless the problem itself does.

    >>> [default_prompt(x, choices=False, graded=True) for x in ("1+1?", "1+1? Use \\boxed{}.")]
    ['qwen', 'bare']
    """
    if not graded or "\\boxed" in problem:
        return BARE
    return LETTER if choices else BOXED


def qwen3_chat(words: str, before: Sequence[dict[str, str]] = ()) -> str:
    """Return one user turn in Qwen3's chat template, up to where the assistant speaks; thinking is on, its default.

    It is word for word what `HubTokenizer.chat_text` makes with Qwen3's own template (tests/test_tasks_sets.py).
    Qwen2.5's template puts a system prompt before it, which OXA leaves out. `before`: messages that come first.
    """
    turns = [*before, {"role": "user", "content": words}]
    return "".join(map(qwen3_turn, turns)) + "<|im_start|>assistant\n"


def qwen3_turn(message: dict[str, str]) -> str:
    """Return one message {"role", "content"} in ChatML, the form of Qwen's and SmolLM2's templates."""
    return f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n"


TURNS = (  # where chat templates begin and end what a user says: ChatML (Qwen, SmolLM2), Llama 3, Gemma, Mistral
    ("<|im_start|>user\n", "<|im_end|>"),
    ("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
    ("<start_of_turn>user\n", "<end_of_turn>"),
    ("[INST]", "[/INST]"),
)


def last_question(prompt: str) -> str:
    """Return what the user says last in a whole prompt, without its chat template; the prompt itself without one.

    >>> last_question(qwen3_chat("1+1?")), last_question("7 5 2 ?24")
    ('1+1?', '7 5 2 ?24')
    """
    for begin, end in TURNS:
        _, found, turn = prompt.rpartition(begin)
        if found:
            return turn.partition(end)[0].strip() or prompt
    return prompt


def no_chat(words: str, before: Sequence[dict[str, str]] = ()) -> str:
    r"""Return the words for a model without a chat template; the messages before them stand in paragraphs.

    >>> no_chat("1+1?", [{"role": "system", "content": "Be short."}])
    'Be short.\n\n1+1?'
    """
    return "\n\n".join([*(message["content"] for message in before), words])


def last_words(words: str, before: Sequence[dict[str, str]] = ()) -> str:
    """Return the words alone, for a caller that puts them into a model's template itself."""
    return words


def asking_for_length(chat: Chat, *, seed: int, fewest: int, most: int) -> Chat:
    """Return a chat form that asks for a length behind the user's words, as L1 does (LCPO, 2503.04697).

    The length is uniform from `fewest` to `most` tokens, a function of (seed, words).
    """
    return lambda words, *before: chat(words + LENGTH + str(drawn_length(words, seed, fewest, most)) + TOKENS, *before)


def drawn_length(words: str, seed: int, fewest: int, most: int) -> int:
    """Return the length that a problem of these words asks for."""
    draw = int.from_bytes(hashlib.sha256(f"{seed} {words}".encode()).digest()[:8], "big")
    return fewest + draw % (most - fewest + 1)


def asked_length(question: str) -> int:
    """Return the length that a prompt asks for; ValueError where it asks for none.

    >>> asked_length(asking_for_length(no_chat, seed=0, fewest=7, most=7)("1+1?"))
    7
    """
    number = question.rpartition(LENGTH)[2].partition(TOKENS)[0]
    if not (LENGTH in question and number.isdecimal()):
        raise ValueError(f"the prompt {question[-80:]!r} asks for no length")
    return int(number)
