"""The one template: token ids of every prompt, for training, generation, judging and export."""

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The format of the Llama-2 chat models: the system text stands inside the first user turn, and each user turn
# begins with a BOS. The space behind it is the one that sentencepiece puts before every text: the models know
# " [INST]", and transformers 5 leaves the space out behind a BOS that stands in the text.
LLAMA2 = (
    "{% set ns = namespace(system='') %}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set ns.system = '<<SYS>>\n' + message['content'] + '\n<</SYS>>\n\n' %}"
    "{% elif message['role'] == 'user' %}{{ bos_token }} [INST] {{ ns.system + message['content'] }} [/INST]{% set ns.system = '' %}"
    "{% else %} {{ message['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
)
# For base models, whose tokenizer has no tokens for turns: headings that they know from text, as in Alpaca's format.
PLAIN = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] }}\n\n"
    "{% elif message['role'] == 'user' %}### Instruction:\n{{ message['content'] }}\n\n### Response:\n"
    "{% else %}{{ message['content'] }}{{ eos_token }}\n\n{% endif %}{% endfor %}"
)
NAMED = {"chatml": CHATML, "llama2": LLAMA2, "plain": PLAIN}

_MARKERS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")
# Only where they are structure: elsewhere they are headings like others.
_HEADINGS = ("### Instruction:", "### Response:")
_BRACKETED = re.compile(r"[<\[{].+[>\]}]")
_PROBE = "PROBE-7f3a"
_TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
_DATE = datetime.date(2024, 7, 26)
"""That which Llama 3.1's template writes where it is given none."""


class TemplateError(ValueError):
    """The tokenizer cannot format prompts; the message says what to set."""


def fill(text: str, **values: str) -> str:
    """Replace each `{name}` in one pass, so that a value that contains `{other}` stays as it is."""
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), text)


def both_tags(tags: dict[str, str | None]) -> str | None:
    """The system text for a model trained with tags, as it is used: both together (paper, table 8)."""
    return " ".join(tag for tag in (tags["seed"], tags["augmented"]) if tag) or None


@dataclass(frozen=True)
class Encoded:
    """Token ids of one example: the prompt, and the completion with its end-of-turn token."""

    prompt: list[int]
    completion: list[int]


class Template:
    """Formats chat turns of one tokenizer.

    `name` is `auto` (the tokenizer's own chat template), `chatml`, `llama2` or `plain`. Training examples are
    `prompt` followed by `completion`, so the prefix a model sees in training is the prompt it
    sees later, token for token. Text from outside cannot end a turn: special tokens inside it are
    broken up by a space (see `neutral`).

    Raises TemplateError when the tokenizer has no chat template, or no token that ends a turn.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", name: str = "auto"):
        self.tokenizer = tokenizer
        if name == "auto" and not tokenizer.chat_template:
            raise TemplateError(
                f"{tokenizer.name_or_path}: the tokenizer has no chat template; set model.template to "
                f"{' or '.join(NAMED)}"
            )
        # Some write today's date (SmolLM3, Llama 3.2), which would be another prompt every day than that of training.
        self.jinja: str = _TODAY.sub(lambda called: repr(_DATE.strftime(called[2])), NAMED.get(name) or tokenizer.chat_template)
        added = tokenizer.added_tokens_decoder.values()
        # Some tokenizers do not call special what their template begins a turn with, as DeepSeek's.
        turns = self._render([{"role": "user", "content": "x"}], add_generation_prompt=True)
        structure = {token.content for token in added if token.special or (_BRACKETED.fullmatch(token.content) and token.content in turns)}
        known = {*tokenizer.all_special_tokens, *structure, *_MARKERS, *(_HEADINGS if name == "plain" else ())}
        # Longest first, so that a token which contains another one is found whole. One character cannot be broken up.
        ordered = sorted({token.strip() for token in known if len(token.strip()) > 1}, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, ordered)))
        # Some tokenizers put a BOS in front by themselves; the template may have written it already.
        empty = tokenizer("", add_special_tokens=True)["input_ids"]
        self._adds_bos = tokenizer.bos_token_id is not None and empty[:1] == [tokenizer.bos_token_id]
        if name == "plain" and self._adds_bos:
            # So that the exported template writes it too.
            self.jinja = "{{ bos_token }}" + self.jinja
        self._system_role = self._has_system_role()
        self.stop_id = self._find_stop()

    def _render(self, messages: list[dict[str, str]], **options: Any) -> str:
        return self.tokenizer.apply_chat_template(messages, tokenize=False, chat_template=self.jinja, **options)

    def _has_system_role(self) -> bool:
        from jinja2 import TemplateError as JinjaError

        messages = [{"role": "system", "content": _PROBE}, {"role": "user", "content": "x"}]
        try:
            return _PROBE in self._render(messages, add_generation_prompt=True)
        except JinjaError:
            return False

    def _find_stop(self) -> int:
        """The token that ends an assistant turn: the first added one that the template writes after it, white space apart."""
        turn = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _PROBE}]
        after, added = self._render(turn).partition(_PROBE)[2], self.tokenizer.added_tokens_decoder
        for token in self.tokenizer(after, add_special_tokens=False)["input_ids"]:
            # Gemma's tokenizers have tokens for line feeds among the added ones, which also stand within texts.
            if token in added and added[token].content.strip():
                return token
        if self.tokenizer.eos_token_id is None:
            raise TemplateError(f"{self.tokenizer.name_or_path}: the tokenizer has no token that ends a turn")
        return self.tokenizer.eos_token_id

    def neutral(self, text: str) -> str:
        """`text` without anything the tokenizer or template would read as structure: `<|im_end|>` -> `< |im_end|>`."""
        # Repeated, since breaking one token up may not leave another one behind.
        while (broken := self._special.sub(lambda match: match[0][0] + " " + match[0][1:], text)) != text:
            text = broken
        return text.strip()

    def text(self, user: str, system: str | None = None, earlier: Sequence[tuple[str, str]] = ()) -> str:
        """The prompt as text, up to where the assistant begins; `earlier` are turns of the user with their answers."""
        turns = [(role, text) for pair in earlier for role, text in zip(("user", "assistant"), pair, strict=True)]
        messages = [{"role": role, "content": self.neutral(text)} for role, text in [*turns, ("user", user)]]
        if system and self._system_role:
            messages.insert(0, {"role": "system", "content": self.neutral(system)})
        elif system:
            messages[0]["content"] = f"{self.neutral(system)}\n\n{messages[0]['content']}"
        return self._render(messages, add_generation_prompt=True)

    def prompt(self, user: str, system: str | None = None, forced: str = "", earlier: Sequence[tuple[str, str]] = ()) -> list[int]:
        """Token ids of the prompt; `forced` is text the assistant's answer must begin with, encoded as an answer is."""
        ids = self.tokenizer(self.text(user, system, earlier), add_special_tokens=False)["input_ids"]
        bos = self.tokenizer.bos_token_id
        if self._adds_bos and ids[:1] != [bos]:
            ids = [bos, *ids]
        return [*ids, *self.tokenizer(forced, add_special_tokens=False)["input_ids"]] if forced else ids

    def completion(self, text: str) -> list[int]:
        """Token ids of an answer, the token that ends the turn included."""
        return [*self.tokenizer(self.neutral(text), add_special_tokens=False)["input_ids"], self.stop_id]

    def example(self, user: str, completion: str, system: str | None = None) -> Encoded:
        return Encoded(self.prompt(user, system), self.completion(completion))
