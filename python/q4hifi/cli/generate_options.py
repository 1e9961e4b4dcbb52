"""The options of ``q4hifi generate``, in groups, with their checks."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ..errors import BadOptionError
from ..files.file_kinds import Pipes, Purpose
from ..wording import shortened

TEMPLATE = Purpose(
    "a chat template", "name a file with a Jinja template", "write it again", Pipes.OPENED, 4 << 20
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """The text to continue, or the first message. ``words`` are arguments too many."""

    words: tuple[str, ...]
    prompt: str | None
    file: str | None

    def check(self, *, is_chat: bool) -> None:
        """Raise :class:`BadOptionError` unless there is one prompt; a chat needs none."""
        if self.words:
            option = "-f" if os.path.isfile(self.words[0]) else "-p"
            raise BadOptionError(
                f"'{self.words[0]}' is one argument too many; if it is the prompt, write {option} before it"
            )
        if self.prompt is not None and self.file is not None:
            raise BadOptionError("-p and -f both give a prompt; choose one")
        if self.prompt is None and self.file is None and not is_chat:
            raise BadOptionError("nothing to continue; give a prompt with -p, or --chat for a conversation")

    def read(self) -> str | None:
        """Return the text, or None if there is none."""
        from ..evaluate.chunks import read_text

        return self.prompt if self.file is None else read_text(self.file)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """The options of a chat."""

    chat: bool
    system: str | None
    template: str | None
    template_file: str | None

    def check(self) -> None:
        """Raise :class:`BadOptionError` for two templates, and for options of a chat without --chat."""
        if self.template is not None and self.template_file is not None:
            raise BadOptionError("--chat-template and --chat-template-file both give a template; choose one")
        for option, value in (
            ("--system-prompt", self.system),
            ("--chat-template", self.template),
            ("--chat-template-file", self.template_file),
        ):
            if value is not None and not self.chat:
                raise BadOptionError(f"{option} needs --chat")

    def read_template(self) -> tuple[str | None, str | None]:
        """Return the template and its name in messages; None for the model's own."""
        if self.template_file is not None:
            from ..files.text_file import read_text_bytes
            from ..gguf_io.metadata import decode_text

            text = read_text_bytes(self.template_file, TEMPLATE).removesuffix(b"\n")
            return decode_text(text), self.template_file
        if self.template is not None:
            _check_template(self.template)
            return self.template, "--chat-template"
        return None, None


def _check_template(text: str) -> None:
    """Raise :class:`BadOptionError` for a value of --chat-template that is not the text of a template."""
    if "{{" in text or "{%" in text:
        return
    shown = shortened(text)
    if os.path.exists(text):
        raise BadOptionError(
            f"--chat-template takes the text of a template; write --chat-template-file {shown}"
        )
    raise BadOptionError(
        f"'{shown}' is not a Jinja template; --chat-template takes the text of one, and --chat-template-file"
        " the name of a file with one; no templates are built in"
    )
