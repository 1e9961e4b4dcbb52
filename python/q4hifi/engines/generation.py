"""Writing text with a model: :func:`generate`, :class:`Writer`, and :class:`Chat` on top of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..codec.model_file import ErrorsAt
from ..errors import BadOptionError, Q4HifiError, UnsupportedModelError
from ..runtime.chat_template import Message, render_words, template_of
from ..runtime.sampler import Sampler
from ..runtime.template_process import ANOTHER_TEMPLATE, CORRECTED_TEMPLATE
from ..runtime.tokenizer import SHIELD
from ..wording import counted
from .protocol import LanguageModel, Logits


def generate(model: LanguageModel, prompt: str, *, n: int | None = None, **sampling: Any) -> Iterator[str]:
    """Yield the text that follows ``prompt``, piece by piece.

    Generation ends after ``n`` tokens, at an end-of-generation token, or when the context is full.
    ``sampling``: the options of :class:`Sampler`. For answers by the model's chat template use
    :class:`Chat`.
    """
    return Writer(model, Sampler(**sampling)).write(model.tokenizer.encode(prompt), n)


@dataclass(slots=True)
class Effort:
    """Cost of a text: tokens read and written, and the seconds that each took."""

    n_read: int = 0
    read_seconds: float = 0.0
    n_written: int = 0
    write_seconds: float = 0.0


class Writer:
    """Continues prompts. If a prompt begins like the last text, only the rest of it is evaluated.

    Attributes: ``effort``, the cost of the last text; ``full``, whether the last text ended because the
    context was full.
    """

    def __init__(self, model: LanguageModel, sampler: Sampler) -> None:
        """Use ``model``, choosing tokens with ``sampler``.

        Raises :class:`UnsupportedModelError` for a model that does not write texts token by token.
        """
        if model.reads_whole_texts:
            raise UnsupportedModelError(
                f"{model.path}: the model reads texts in both directions, and does not write them token by"
                " token"
            )
        self._model = model
        self._sampler = sampler
        self._sequence = model.sequence()
        self._seen: list[int] = []
        self.effort = Effort()
        self.full = False

    def write(self, prompt: Sequence[int], n: int | None = None) -> Iterator[str]:
        """Yield the text that follows the token ids of ``prompt``, piece by piece; pieces may be empty.

        Generation ends after ``n`` tokens, at an end-of-generation token, or when the context is full.
        Control tokens are left out. Raises :class:`BadOptionError` for a prompt that is empty or fills the
        context.
        """
        prompt = list(prompt)
        if not prompt:
            raise BadOptionError(
                "the prompt is empty, and this model does not begin texts with BOS; give a text"
            )
        if len(prompt) >= self._model.n_ctx:
            raise BadOptionError(
                f"the text so far has {counted(len(prompt), 'token, which fills', 'tokens, which fill')} the"
                f" context of {self._model.n_ctx};"
                " give less text or a longer context, `n_ctx`"
            )
        self.effort, self.full = Effort(), False
        tokenizer = self._model.tokenizer
        stream = tokenizer.stream(skip_special=True)
        self._keep_what_begins(prompt)
        logits = self._read(prompt[len(self._seen) :])
        token = None
        while n is None or self.effort.n_written < n:
            started = time.perf_counter()
            if token is not None:
                self.full = len(self._seen) == self._model.n_ctx
                if self.full:
                    break
                logits = self._evaluate([token])
            with ErrorsAt(f"{self._model.path}: "):
                token = self._sampler.sample(logits)
            self.effort.write_seconds += time.perf_counter() - started
            if tokenizer.is_end_of_generation(token):
                break
            self.effort.n_written += 1
            yield stream.feed(token)
        yield stream.finish()

    def _read(self, tokens: list[int]) -> Logits:
        started = time.perf_counter()
        logits = self._evaluate(tokens)
        self.effort.n_read, self.effort.read_seconds = len(tokens), time.perf_counter() - started
        return logits

    def _evaluate(self, tokens: list[int]) -> Logits:
        try:
            logits = self._sequence.evaluate(tokens)
        finally:  # after Ctrl-C a part of the tokens may have been read
            self._seen = (self._seen + tokens)[: self._sequence.length]
        assert logits is not None
        return logits

    def _keep_what_begins(self, prompt: list[int]) -> None:
        """Remove all tokens from the sequence but those that ``prompt`` begins with, without its last one."""
        pairs = zip(self._seen, prompt[:-1], strict=False)
        same = next((i for i, (seen, token) in enumerate(pairs) if seen != token), None)
        same = min(len(self._seen), len(prompt) - 1) if same is None else same
        try:
            self._sequence.truncate(same)
        except BadOptionError:  # a sliding window has dropped needed tokens
            same = 0
            self._sequence.reset()
        del self._seen[same:]


class Chat:
    """A conversation with a model, through its chat template.

    Attributes: ``messages``, the whole conversation; ``n_forgotten``, how many of the oldest messages after
    the system message are left out of the prompt, because the context is too small; ``writer``, the
    :class:`Writer` of the answers.

    The prompt equals llama.cpp's for the same messages. If the file asks for BOS (``add_bos``), the prompt
    begins with exactly one, even if the template writes one as well. Otherwise it has a BOS only if the
    template writes it. EOS (``add_eos``) at the end of the prompt is treated alike.
    """

    def __init__(
        self,
        model: LanguageModel,
        sampler: Sampler,
        *,
        system: str | None = None,
        template: str | None = None,
        template_name: str | None = None,
    ) -> None:
        """Start a conversation, with a system message if given.

        ``template`` is a Jinja template that replaces the model's own, and ``template_name`` its name in
        errors, such as that of its file; by default they name the model's file. Raises
        :class:`UnsupportedModelError` if there is no template, or if it fails, rejects the messages or
        leaves out the user's words.
        """
        self._model = model
        self._template_errors = ErrorsAt(f"{template_name or model.path}: ")
        self._remedy = ANOTHER_TEMPLATE if template is None else CORRECTED_TEMPLATE
        with ErrorsAt(f"{model.path}: "):
            self._template = template_of(model.metadata) if template is None else template
        self.messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self.n_forgotten = 0
        self.writer = Writer(model, sampler)
        self._prompt([*self.messages, {"role": "user", "content": "Hello"}])

    def answer(self, text: str, n: int | None = None) -> Iterator[str]:
        """Yield the model's answer to ``text``, at most ``n`` tokens, piece by piece.

        The prompt leaves room for an answer of a quarter of the context, or of ``n`` tokens if that is
        less. While the conversation does not fit, the older half of its turns is left out.

        An interrupted answer stays part of the conversation. Text in a message that spells a control token,
        such as ``<|im_end|>``, is encoded as plain text.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        prompt = self._fitting_prompt(messages, n)
        return self._answer(messages, prompt, n)

    def _answer(self, messages: list[Message], prompt: list[int], n: int | None) -> Iterator[str]:
        pieces: list[str] = []
        try:
            for piece in self.writer.write(prompt, n):
                pieces.append(piece)
                yield piece
        finally:
            if pieces:
                self.messages = [*messages, {"role": "assistant", "content": "".join(pieces)}]

    def _fitting_prompt(self, messages: list[Message], n: int | None) -> list[int]:
        """Return the prompt with as many messages as fit, and update ``n_forgotten``."""
        n_ctx = self._model.n_ctx
        room = n_ctx // 4 if n is None else min(n, n_ctx // 4)
        first = int(messages[0]["role"] == "system")  # the system message is never forgotten
        n_forgotten = self.n_forgotten
        while True:
            kept = messages[first + n_forgotten :]
            prompt = self._prompt([*messages[:first], *kept])
            turns = [i for i, message in enumerate(kept) if message["role"] == "user"]
            if len(prompt) + room <= n_ctx or len(turns) == 1:
                break
            n_forgotten += turns[len(turns) // 2]
        if len(prompt) < n_ctx:
            self.n_forgotten = n_forgotten
        return prompt

    def _prompt(self, messages: list[Message]) -> list[int]:
        """Return the token ids of the messages as the template formats them."""
        tokenizer = self._model.tokenizer
        shielded = [{**message, "content": tokenizer.shield(message["content"])} for message in messages]
        bos, eos = (
            "" if token is None else tokenizer.piece(token).decode("utf-8", "replace")
            for token in (tokenizer.bos, tokenizer.eos)
        )
        with self._template_errors:
            try:
                prompt = render_words(self._template, shielded, bos=bos, eos=eos)
            except Q4HifiError as error:
                raise type(error)(str(error).replace(ANOTHER_TEMPLATE, self._remedy)) from error
        if tokenizer.add_bos:
            prompt = prompt.removeprefix(bos)
        if tokenizer.add_eos:
            prompt = prompt.removesuffix(eos)
        with ErrorsAt(f"{self._model.path}: "):
            return tokenizer.encode(prompt, parse_special=True, shield=SHIELD)
