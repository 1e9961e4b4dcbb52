"""Reading the vocabulary of a model from the metadata of its GGUF file, as llama.cpp reads it.

Many files leave out which tokens end a generation, or mark a control token as text. Then the texts of the
tokens decide, as in llama.cpp (``llama_vocab::impl::load``).
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
"""Values of ``tokenizer.ggml.model`` that are supported."""

CONTROL = (TokenType.CONTROL, TokenType.UNKNOWN)
"""Types of tokens that are not text, such as BOS or a chat's markers."""

SPECIAL = (*CONTROL, TokenType.USER_DEFINED)
"""Types of special tokens: an encoder finds these in a text before it splits the rest into subwords."""

_K = Keys.Tokenizer
_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")
_SENTENCE_PIECE_RULES = PreTokenizer((), add_bos=True)
_SENTENCE_PIECE_DEFAULTS: tuple[int, int, int | None] = (1, 2, 0)  # BOS, EOS, unknown
_BYTE_LEVEL_DEFAULTS = (11, 11, None)  # BOS, EOS, unknown: 11 is Falcon's only special token


class _Role(NamedTuple):
    """A purpose that one token of a vocabulary may have.

    ``keys``: metadata keys that hold the token's id. ``ends``: whether the token ends a generation.
    ``texts``: texts that identify the token if there is no key, separated by spaces; the first one in the
    vocabulary counts.
    """

    keys: tuple[str, ...]
    ends: bool
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
"""Texts of tokens that end a generation in every vocabulary that has them."""

_SHOWN = "<|channel|> <|message|> <|start|> <|constrain|>"
"""Texts of tokens that are part of an answer, even if the file marks them as control tokens."""

_EXCEPTIONS = (
    ("<|end|>", ("<|return|> <|flush|>", "<|call|> <|calls|>"), TokenType.USER_DEFINED),
    ("</s>", ("<|tool_response> <|plamo:eos|>",), TokenType.NORMAL),
)
"""Exceptions to :data:`_ENDS`: text of the token, groups of other tokens, type of the token.

If at least one token of every group ends a generation, the token itself does not, and it gets this type.
"""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of a model, and the rules for encoding with them.

    ``texts``, ``types`` (:class:`gguf.TokenType`) and ``scores`` are lists by token id; texts are spelled as
    in the file. ``ids`` maps a text to its token. ``merges`` holds the BPE merges in order of priority; each
    is two texts with a space between. ``ends``: tokens that end a generation. ``stripping``: tokens that
    remove the whitespace after them. ``bos``, ``eos``, ``eot`` (end of turn) and ``unknown`` are token ids,
    None if there is no such token. ``add_bos`` and ``add_eos``: whether these are put around a text.
    ``add_space_prefix``: whether a space is put before a text.
    """

    rules: PreTokenizer
    texts: list[str]
    ids: dict[str, int]
    types: list[int]
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
    """Return the vocabulary that the metadata of a GGUF file describe.

    Raises :class:`UnsupportedModelError` for a type of vocabulary or a pre-tokenizer that is not supported,
    and :class:`BadFileError` if the vocabulary is missing or inconsistent.
    """
    rules, is_byte_level = _rules(metadata)
    texts: list[str] = [  # up to the first NUL: llama.cpp reads them as C strings
        text.partition("\0")[0] or f"[EMPTY_{i}]" for i, text in enumerate(_array(metadata, _K.LIST, str, 1))
    ]
    n = len(texts)
    ids = {text: token for token, text in enumerate(texts)}
    if len(ids) < n:
        token = next(i for i, text in enumerate(texts) if ids[text] != i)
        raise BadFileError(f"{_K.LIST}: tokens {token} and {ids[texts[token]]} are both {texts[token]!r:.80}")
    types = [int(TokenType.NORMAL)] * n
    if _K.TOKEN_TYPE in metadata:
        types = _array(metadata, _K.TOKEN_TYPE, int, n)[:n]
    for token, token_type in enumerate(types):
        if token_type == TokenType.BYTE and not _BYTE.fullmatch(texts[token]):
            raise BadFileError(
                f"{_K.LIST}: token {token} has the type BYTE, but its text is {texts[token]!r:.80},"
                " not one such as <0x0A>"
            )
    scores = [0.0] * n
    if not is_byte_level and _K.SCORES in metadata:
        scores = _array(metadata, _K.SCORES, (float, int), n)

    def token_of(default: int | None, *keys: str) -> int | None:
        """Return the token that the last valid key names, or the default."""
        candidates = [default, *(metadata.get(key) for key in keys)]
        return next((i for i in reversed(candidates) if isinstance(i, int) and 0 <= i < n), None)

    bos, default_eos, unknown = _BYTE_LEVEL_DEFAULTS if is_byte_level else _SENTENCE_PIECE_DEFAULTS
    eos = token_of(default_eos, _K.EOS_ID)
    roles = {name: token_of(None, *role.keys) for name, role in _ROLES.items()}
    ends = _classify(ids, types, roles, eos)
    return Vocabulary(
        rules=rules,
        texts=texts,
        ids=ids,
        types=types,
        scores=scores,
        merges=_array(metadata, _K.MERGES, str, 0) if is_byte_level else [],
        bos=token_of(bos if rules.default_bos else None, _K.BOS_ID),
        eos=eos,
        eot=roles["eot"],
        unknown=token_of(unknown, _K.UNK_ID),
        ends=ends,
        stripping=_stripping(metadata, ids, types),
        add_bos=bool(metadata.get(_K.ADD_BOS, rules.add_bos)),
        add_eos=bool(metadata.get(_K.ADD_EOS, False)),
        add_space_prefix=bool(metadata.get(_K.ADD_PREFIX, not is_byte_level)),
        is_byte_level=is_byte_level,
    )


def _rules(metadata: Mapping[str, Any]) -> tuple[PreTokenizer, bool]:
    """Return the rules of the vocabulary, and whether it is a byte-level one."""
    model = metadata.get(_K.MODEL)
    if model == SENTENCE_PIECE:
        return _SENTENCE_PIECE_RULES, False
    if model != BYTE_LEVEL:
        raise UnsupportedModelError(
            f"{_K.MODEL} is {'missing' if model is None else repr(model)[:80]}; only {BYTE_LEVEL}"
            f" (byte-level BPE) and {SENTENCE_PIECE} (SentencePiece) are supported"
        )
    name = metadata.get(_K.PRE) or DEFAULT
    if name not in PRE_TOKENIZERS:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise UnsupportedModelError(f"{_K.PRE} is {name!r:.80}; only these are supported: {known}")
    return PRE_TOKENIZERS[name], True


def _array(metadata: Mapping[str, Any], key: str, types: type | tuple[type, ...], least: int) -> list[Any]:
    """Return an array of at least ``least`` elements, of one of ``types``; else raise BadFileError."""
    values = metadata.get(key)
    if not isinstance(values, list):
        raise BadFileError(f"{key} is {'missing' if values is None else repr(values)[:80]}, not an array")
    if len(values) < least:
        raise BadFileError(f"{key} has {len(values)} elements; at least {least} are needed")
    if values and not isinstance(values[0], types):
        raise BadFileError(f"{key} has elements of the wrong type, such as {values[0]!r:.80}")
    return values


def _classify(
    ids: Mapping[str, int], types: list[int], roles: dict[str, int | None], eos: int | None
) -> frozenset[int]:
    """Complete ``roles`` and ``types`` from the texts of the tokens; return those that end a generation."""

    def present(texts: str) -> list[int]:
        return [ids[text] for text in texts.split() if text in ids]

    for name, role in _ROLES.items():
        if roles[name] is None and (tokens := present(role.texts)):
            roles[name] = tokens[0]
            types[tokens[0]] = TokenType.CONTROL
    ends = set(present(_ENDS))
    for token in ends:
        types[token] = TokenType.CONTROL
    for token in present(_SHOWN):
        types[token] = TokenType.USER_DEFINED
    named = [eos, *(roles[name] for name, role in _ROLES.items() if role.ends)]
    ends.update(token for token in named if token is not None)
    for text, groups, token_type in _EXCEPTIONS:
        if ids.get(text) in ends and all(ends.intersection(present(group)) for group in groups):
            ends.remove(ids[text])
            types[ids[text]] = token_type
    return frozenset(ends)


def _stripping(metadata: Mapping[str, Any], ids: Mapping[str, int], types: list[int]) -> frozenset[int]:
    """Return the tokens that remove the whitespace after them: most special tokens of Phi-3.

    No metadata key says which tokens these are. Like llama.cpp, recognize the model by its name.
    """
    name = str(metadata.get(Keys.General.NAME, "")).lower()
    if "phi-3" not in name and "phi3" not in name:
        return frozenset()
    special = {token for token, token_type in enumerate(types) if token_type in SPECIAL}
    return frozenset(special - {ids.get(text) for text in ("<unk>", "<s>", "<|endoftext|>")})
