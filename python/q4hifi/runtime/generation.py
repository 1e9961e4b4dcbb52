"""Writing text with a model: :func:`generate`, :class:`Writer`, and :class:`Chat` on top of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..codec.model_file import ErrorsAt
from ..errors import BadOptionError
from .chat_template import Message, render_words, template_of
from .model import Floats, Model, Sampler
from .tokenizer import SHIELD


def generate(model: Model, prompt: str, *, n: int | None = None, **sampling: Any) -> Iterator[str]:
    """Yield the text that follows ``prompt``, piece by piece, as it comes.

    It ends after ``n`` tokens, where the model ends it, or where the context is full. ``sampling``: the
    options of :class:`Sampler`. :class:`Chat` answers by the model's chat template.
    """
    return Writer(model, Sampler(**sampling)).write(model.tokenize(prompt), n)


@dataclass(slots=True)
class Effort:
    """What a text took: tokens that were read and written, and the seconds of each."""

    n_read: int = 0
    read_seconds: float = 0.0
    n_written: int = 0
    write_seconds: float = 0.0


class Writer:
    """Writes on from prompts; of a prompt that begins as the last text did, only the rest is read.

    ``effort`` is that of the last text, ``full`` whether it ended because the context did.
    """

    def __init__(self, model: Model, sampler: Sampler) -> None:
        """Use ``model``, choosing tokens with ``sampler``."""
        self._model = model
        self._sampler = sampler
        self._sequence = model.sequence()
        self._seen: list[int] = []
        self.effort = Effort()
        self.full = False

    def write(self, prompt: Sequence[int], n: int | None = None) -> Iterator[str]:
        """Yield text that follows the tokens of ``prompt``, as it comes; the pieces may be empty.

        It ends after ``n`` tokens, where the model ends it, or where the context is full. Control
        tokens are left out. Raises :class:`BadOptionError` for a prompt that fills the context.
        """
        prompt = list(prompt)
        if not prompt:
            raise BadOptionError(
                "the prompt has no tokens, and this model begins none by itself; give a text"
            )
        if len(prompt) >= self._model.n_ctx:
            raise BadOptionError(
                f"the text so far has {len(prompt)} tokens, which fill the context of {self._model.n_ctx};"
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

    def _read(self, tokens: list[int]) -> Floats:
        started = time.perf_counter()
        logits = self._evaluate(tokens)
        self.effort.n_read, self.effort.read_seconds = len(tokens), time.perf_counter() - started
        return logits

    def _evaluate(self, tokens: list[int]) -> Floats:
        try:
            logits = self._sequence.evaluate(tokens)
        finally:  # after Ctrl-C a part of the tokens may have been read
            self._seen = (self._seen + tokens)[: self._sequence.length]
        assert logits is not None
        return logits

    def _keep_what_begins(self, prompt: list[int]) -> None:
        """Forget what was seen but for the tokens with which ``prompt`` begins, and its last token."""
        pairs = zip(self._seen, prompt[:-1], strict=False)
        same = next((i for i, (seen, token) in enumerate(pairs) if seen != token), None)
        same = min(len(self._seen), len(prompt) - 1) if same is None else same
        try:
            self._sequence.truncate(same)
        except BadOptionError:  # a sliding window has forgotten too much
            same = 0
            self._sequence.reset()
        del self._seen[same:]


class Chat:
    """A conversation with a model, by a chat template.

    ``messages`` is all that was said. ``n_forgotten`` of them, the oldest after the system message, are no
    longer read because the context is too small. ``writer`` writes the answers.

    The prompt is what llama.cpp gives for the same messages. Where the file asks for BOS (``add_bos``), the
    prompt begins with it, and a BOS that the template writes there as well counts as the same; else BOS
    is there only if the template writes it. The same goes for EOS (``add_eos``) at the prompt's end.
    """

    def __init__(
        self, model: Model, sampler: Sampler, *, system: str | None = None, template: str | None = None
    ) -> None:
        """Begin, with a system message if given; ``template`` replaces the model's own (Jinja text).

        Raises :class:`UnsupportedModelError` where there is no template, or one that fails or leaves out
        what a user says, and :class:`BadOptionError` where it refuses the system message.
        """
        self._model = model
        with ErrorsAt(f"{model.path}: "):
            self._template = template_of(model.metadata) if template is None else template
        self.messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self.n_forgotten = 0
        self.writer = Writer(model, sampler)
        self._prompt([*self.messages, {"role": "user", "content": "Hello"}])

    def answer(self, text: str, n: int | None = None) -> Iterator[str]:
        """Yield the model's answer to ``text``, at most ``n`` tokens, in pieces while it is written.

        If the conversation and an answer of a quarter of the context (or of ``n`` tokens, if that is less)
        do not fit in the context, the older half of the turns is forgotten, again and again if need be.

        What was written before an interruption stays part of the conversation. A control token that is
        spelled in a message, such as ``<|im_end|>``, is text there; only the template's count.
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
        """Return the prompt of what is not forgotten, and forget what does not fit."""
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
        """Return the tokens of messages and of what the template puts around them."""
        tokenizer = self._model.tokenizer
        shielded = [{**message, "content": tokenizer.shield(message["content"])} for message in messages]
        bos, eos = (
            "" if token is None else tokenizer.piece(token).decode("utf-8", "replace")
            for token in (tokenizer.bos, tokenizer.eos)
        )
        with ErrorsAt(f"{self._model.path}: "):
            prompt = render_words(self._template, shielded, bos=bos, eos=eos)
            if tokenizer.add_bos:
                prompt = prompt.removeprefix(bos)
            if tokenizer.add_eos:
                prompt = prompt.removesuffix(eos)
            return tokenizer.encode(prompt, parse_special=True, shield=SHIELD)
