"""The vocabulary of a model as its GGUF file states it, with what llama.cpp makes of it.

Files often state too little: which tokens end a text, or that a token is control and not text. As in
llama.cpp, the texts of the tokens then decide.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import BadFileError, UnsupportedModelError
from ..formats.gguf_constants import Keys, TokenType
from .pre_tokenizers import DEFAULT, PRE_TOKENIZERS, PreTokenizer

BYTE_LEVEL, SENTENCE_PIECE = "gpt2", "llama"
"""The kinds of vocabulary that are supported, as ``tokenizer.ggml.model`` calls them."""

CONTROL = (TokenType.CONTROL, TokenType.UNKNOWN)
"""Kinds of tokens that are no text."""

SPECIAL = (*CONTROL, TokenType.USER_DEFINED)
"""Kinds of tokens that are looked for in a text as they are, before anything else."""

_K = Keys.Tokenizer
_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")
_SENTENCE_PIECE_RULES = PreTokenizer((), add_bos=True)
_SENTENCE_PIECE_DEFAULTS: tuple[int, int, int | None] = (1, 2, 0)  # BOS, EOS, unknown
_BYTE_LEVEL_DEFAULTS = (11, 11, None)  # 11 is Falcon's only special token


class _Role(NamedTuple):
    """What a token can be for: the keys that name it, the texts that tell it where no key does."""

    keys: tuple[str, ...]
    ends: bool  # whether such a token ends a generation
    texts: str


_ROLES: Mapping[str, _Role] = {
    "eot": _Role(
        (_K.EOT_ID,),
        True,
        "<|eot_id|> <|im_end|> <|end|> <end_of_turn> <|endoftext|> <|end_of_text|> <EOT> _<EOT> [EOT]"
        " <｜end▁of▁sentence｜> <end_of_utterance>",
    ),
    "eom": _Role((_K.EOM_ID,), True, "<|eom_id|>"),
    "fim_pre": _Role(
        (_K.FIM_PRE_ID, _K.PREFIX_ID),
        False,
        "<|fim_prefix|> <fim-prefix> <fim_prefix> <｜fim▁begin｜> <PRE> ▁<PRE> <|code_prefix|> <|prefix|>",
    ),
    "fim_suf": _Role(
        (_K.FIM_SUF_ID, _K.SUFFIX_ID),
        False,
        "<|fim_suffix|> <fim-suffix> <fim_suffix> <｜fim▁hole｜> <SUF> ▁<SUF> <|code_suffix|> <|suffix|>",
    ),
    "fim_mid": _Role(
        (_K.FIM_MID_ID, _K.MIDDLE_ID),
        False,
        "<|fim_middle|> <fim-middle> <fim_middle> <｜fim▁end｜> <MID> ▁<MID> <|code_middle|> <|middle|>",
    ),
    "fim_pad": _Role((_K.FIM_PAD_ID,), True, "<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]"),
    "fim_rep": _Role((_K.FIM_REP_ID,), True, "<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame>"),
    "fim_sep": _Role((_K.FIM_SEP_ID,), True, "<|file_sep|>"),
}

_ENDS = (
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s>"
    " <|eom_id|> <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response>"
    " <｜end▁of▁sentence｜> [e~["
)
"""Tokens that end a generation in whatever vocabulary they are."""

_SHOWN = "<|channel|> <|message|> <|start|> <|constrain|>"
"""Tokens that are shown even where a file calls them control."""

_NO_ENDS = (
    ("<|end|>", ("<|return|> <|flush|>", "<|call|> <|calls|>"), TokenType.USER_DEFINED),
    ("</s>", ("<|tool_response> <|plamo:eos|>",), TokenType.NORMAL),
)
"""Tokens that end nothing after all, and what kind they are, where one of each of these ends a text."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens, and the rules that go with them.

    By token: ``texts`` as the file spells them, ``kinds`` (:class:`gguf.TokenType`) and ``scores``.
    ``ids``: token by text. ``merges``: pairs of texts with a blank between, the first to be merged first.
    ``ends``: tokens that end a generation. ``stripping``: those that swallow the blanks after them.
    ``bos``, ``eos``, ``eot`` (end of a turn) and ``unknown`` are None where there is no such token.
    """

    rules: PreTokenizer
    texts: list[str]
    ids: dict[str, int]
    kinds: list[int]
    scores: list[float]
    merges: list[str]
    bos: int | None
    eos: int | None
    eot: int | None
    unknown: int | None
    ends: frozenset[int]
    stripping: frozenset[int]
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    is_byte_level: bool


def read_vocabulary(metadata: Mapping[str, Any]) -> Vocabulary:
    """Read the vocabulary from the key-value pairs of a GGUF file.

    Raises :class:`UnsupportedModelError` for a kind of vocabulary or a pre-tokenizer that is not known,
    and :class:`BadFileError` where there is no vocabulary or it contradicts itself.
    """
    rules, is_byte_level = _rules(metadata)
    texts: list[str] = [
        text.partition("\0")[0] or f"[EMPTY_{i}]" for i, text in enumerate(_array(metadata, _K.LIST, str, 1))
    ]  # llama.cpp reads them as C strings
    n = len(texts)
    ids = {text: token for token, text in enumerate(texts)}
    if len(ids) < n:
        token = next(i for i, text in enumerate(texts) if ids[text] != i)
        raise BadFileError(f"{_K.LIST}: tokens {token} and {ids[texts[token]]} are both {texts[token]!r:.80}")
    kinds = [int(TokenType.NORMAL)] * n
    if _K.TOKEN_TYPE in metadata:
        kinds = _array(metadata, _K.TOKEN_TYPE, int, n)[:n]
    for token, kind in enumerate(kinds):
        if kind == TokenType.BYTE and not _BYTE.fullmatch(texts[token]):
            raise BadFileError(
                f"{_K.LIST}: token {token} is {texts[token]!r:.80}, which is no byte such as <0x0A>"
            )
    scores = [0.0] * n
    if not is_byte_level and _K.SCORES in metadata:
        scores = _array(metadata, _K.SCORES, (float, int), n)

    def token_of(default: int | None, *keys: str) -> int | None:
        named = [default, *(metadata.get(key) for key in keys)]
        return next((i for i in reversed(named) if isinstance(i, int) and 0 <= i < n), None)

    bos, default_eos, unknown = _BYTE_LEVEL_DEFAULTS if is_byte_level else _SENTENCE_PIECE_DEFAULTS
    eos = token_of(default_eos, _K.EOS_ID)
    roles = {name: token_of(None, *role.keys) for name, role in _ROLES.items()}
    ends = _classify(ids, kinds, roles, eos)
    return Vocabulary(
        rules=rules,
        texts=texts,
        ids=ids,
        kinds=kinds,
        scores=scores,
        merges=_array(metadata, _K.MERGES, str, 0) if is_byte_level else [],
        bos=token_of(bos if rules.default_bos else None, _K.BOS_ID),
        eos=eos,
        eot=roles["eot"],
        unknown=token_of(unknown, _K.UNK_ID),
        ends=ends,
        stripping=_stripping(metadata, ids, kinds),
        add_bos=bool(metadata.get(_K.ADD_BOS, rules.add_bos)),
        add_eos=bool(metadata.get(_K.ADD_EOS, False)),
        add_space_prefix=bool(metadata.get(_K.ADD_PREFIX, not is_byte_level)),
        is_byte_level=is_byte_level,
    )


def _rules(metadata: Mapping[str, Any]) -> tuple[PreTokenizer, bool]:
    """The rules of the vocabulary's kind, and whether it is a byte-level one."""
    model = metadata.get(_K.MODEL)
    if model == SENTENCE_PIECE:
        return _SENTENCE_PIECE_RULES, False
    if model != BYTE_LEVEL:
        raise UnsupportedModelError(
            f"{_K.MODEL} is {'missing' if model is None else repr(model)[:80]}; vocabularies of kind"
            f" {BYTE_LEVEL} (byte-level BPE) and {SENTENCE_PIECE} (SentencePiece) are supported"
        )
    name = metadata.get(_K.PRE) or DEFAULT
    if name not in PRE_TOKENIZERS:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise UnsupportedModelError(f"{_K.PRE} is {name!r:.80}, which is not supported; these are: {known}")
    return PRE_TOKENIZERS[name], True


def _array(metadata: Mapping[str, Any], key: str, kind: type | tuple[type, ...], least: int) -> list[Any]:
    values = metadata.get(key)
    if not isinstance(values, list):
        raise BadFileError(f"{key} is {'missing' if values is None else repr(values)[:80]}, not an array")
    if len(values) < least:
        raise BadFileError(f"{key} has {len(values)} elements; at least {least} are needed")
    if values and not isinstance(values[0], kind):
        raise BadFileError(f"{key} has elements such as {values[0]!r:.80}, which do not belong there")
    return values


def _classify(
    ids: Mapping[str, int], kinds: list[int], roles: dict[str, int | None], eos: int | None
) -> frozenset[int]:
    """Complete ``roles`` and ``kinds`` by the texts of the tokens; return those that end a generation."""

    def present(texts: str) -> list[int]:
        return [ids[text] for text in texts.split() if text in ids]

    for name, role in _ROLES.items():
        if roles[name] is None and (tokens := present(role.texts)):
            roles[name] = tokens[0]
            kinds[tokens[0]] = TokenType.CONTROL
    ends = set(present(_ENDS))
    for token in ends:
        kinds[token] = TokenType.CONTROL
    for token in present(_SHOWN):
        kinds[token] = TokenType.USER_DEFINED
    named = [eos, *(roles[name] for name, role in _ROLES.items() if role.ends)]
    ends.update(token for token in named if token is not None)
    for text, signs, kind in _NO_ENDS:
        if ids.get(text) in ends and all(ends.intersection(present(any_of)) for any_of in signs):
            ends.remove(ids[text])
            kinds[ids[text]] = kind
    return frozenset(ends)


def _stripping(metadata: Mapping[str, Any], ids: Mapping[str, int], kinds: list[int]) -> frozenset[int]:
    """Phi-3's special tokens; the file does not tell, so llama.cpp goes by the model's name."""
    name = str(metadata.get(Keys.General.NAME, "")).lower()
    if "phi-3" not in name and "phi3" not in name:
        return frozenset()
    special = {token for token, kind in enumerate(kinds) if kind in SPECIAL}
    return frozenset(special - {ids.get(text) for text in ("<unk>", "<s>", "<|endoftext|>")})
