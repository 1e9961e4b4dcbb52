r"""The pre-tokenizers of byte-level BPE vocabularies, by their names in ``tokenizer.ggml.pre``.

A pre-tokenizer splits a text into words, in one step per regular expression. Each step splits all pieces
of the step before: every match becomes a piece, and so does the text between two matches.

Names and rules are llama.cpp's (``llama_vocab::impl::load`` and ``unicode.cpp``), including its
simplifications: it distinguishes upper from lower case in ASCII only, and whitespace beyond ASCII never
matches a range such as ``\u0800-\u4e00``. The expressions have the syntax of Oniguruma, which the tokenizers
library uses. It follows Unicode 16 and llama.cpp Unicode 15.1, so words may differ around the newest
characters.

A long text is first cut into blocks. The words of the blocks must be the words of the whole text.
``block_ends`` matches only where this is sure. No expression looks back, so the text after a cut is safe if
a word begins there. The words before the cut must not depend on the text after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

DEFAULT = "default"
"""The pre-tokenizer of a file that names none. As in llama.cpp, it splits most texts poorly."""

_MATCHED = "A-Za-zÀ-ÖØ-öø-ƺΑ-Ρα-ωА-яก-ฮअ-हぁ-ゖァ-ヺ一-龥가-힣"
_LETTER = _MATCHED + "א-תء-غف-ي"
"""Letters at which it is sure how every pre-tokenizer splits.

Those of ``_MATCHED`` are part of a word for every pre-tokenizer, the others for all but deepseek-llm.
"""

_BEFORE_COMMA = rf"(?<=[{_LETTER}0-9])(?=,)"
_AFTER_LINE = rf"(?<=[!-~\u00b7-\u07ff\u3001-\ufefe\uff01-\uff65]\n)(?=[{_LETTER}0-9])"
_BEFORE_DIGIT = rf"(?<=[{_LETTER}])(?=[0-9])"
_BEFORE_BLANK = rf"(?<=[{_MATCHED}0-9])(?= [{_LETTER}0-9])"
_BETWEEN_NUMBERS = rf"(?<=[0-9])(?=,| [{_LETTER}0-9])"

_BLOCK_ENDS = "|".join((_BEFORE_COMMA, _AFTER_LINE, _BEFORE_DIGIT, _BEFORE_BLANK))
_BLOCK_ENDS_BESIDE_DIGITS = "|".join((_BEFORE_DIGIT, _BETWEEN_NUMBERS))
_BLOCK_ENDS_OF_PHRASES = "|".join((_BEFORE_COMMA, _AFTER_LINE, _BEFORE_DIGIT, _BETWEEN_NUMBERS))
_BLOCK_ENDS_OF_ANY_SIGNS = "|".join((_BEFORE_COMMA, _AFTER_LINE, _BEFORE_BLANK))


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """Rules for splitting a text into words, and llama.cpp's defaults for vocabularies that use them.

    ``splits``: regular expressions, one per step. ``ignore_merges``: a word that is a token becomes this
    token without merging. ``add_bos``: a text begins with BOS unless the file says otherwise.
    ``default_bos``: whether there is a BOS token if the file names none. ``clean_spaces``: decoding removes
    the space before punctuation and contractions. ``block_ends``: an expression of Python's :mod:`re` that
    matches where a long text may be cut into blocks.
    """

    splits: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    default_bos: bool = True
    clean_spaces: bool = False
    block_ends: str = _BLOCK_ENDS


_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SIGNS_OR_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_BLANKS = r"\s+(?!\S)|\s+"
_LINES = rf"\s*[\r\n]+|{_BLANKS}"
_SUFFIX = r"'(?:[sdmtSDMT]|[lL][lL]|[vV][eE]|[rR][eE])"  # 's, 'll, ...
_SYLLABLES = r"\p{L}\p{M}*(?: \p{L}\p{M}*)*"
_ASCII_SIGN = r"[!-/:-@\[-`{-~]"
_DIGITS_FROM_THE_RIGHT = r"\P{N}*\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))|\P{N}+"
_BLANKS_BY_TWOS = (
    "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4)) + r"|\s{1,2}(?!\S)|\s"
)
_HAN_AND_KANA = "[一-龥\u3040-\u30ff]+"
_HAN_HANGUL_AND_MORE = "[[一-龥\u0800-一가-\ud7ff]&&\\S]+"
_ASIAN_LETTERS = (  # afmoe's list, with its mistake: \u8c48 instead of \uf900
    "[一-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f"
    "\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff가-\ud7af\u1100-\u11ff]+"
)
_ASIAN_SIGNS = (
    "[가-힣\u3131-\u318e]+|[！…“”‘’—：；，\u3001-\u303f\ufe30-\ufe4f]+|[\u3105-\u312f]+|" + _HAN_AND_KANA
)
_CASED_LETTERS = (  # deepseek-llm's list: the letters with upper and lower case in its Unicode version
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝ"
    "Ὗ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛ"
    "Ꜣ-ꝯꝱ-ꞇꞋ-ꞎ\uab70-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)


def _either(*expressions: str) -> str:
    return "|".join(expressions)


def _by_case(letter: str, suffix: str = "") -> str:
    """Return an expression for words that end before an upper-case letter after a lower-case one."""
    start, upper, lower = r"[^\r\n\p{L}\p{N}]?", f"[{letter}&&[^a-z]]", f"[{letter}&&[^A-Z]]"
    return f"{start}{upper}*{lower}+{suffix}|{start}{upper}+{lower}*{suffix}"


_GPT2 = _either(r"'(?:[sdmt]|ll|ve|re)", r" ?\p{L}+", r" ?\p{N}+", r" ?[^\s\p{L}\p{N}]+", _BLANKS)
_LLAMA3 = _either(_SUFFIX, _WORD, r"\p{N}{1,3}", _SIGNS, _LINES)
_QWEN2 = _either(_SUFFIX, _WORD, r"\p{N}", _SIGNS, _LINES)
_QWEN35 = _either(
    _SUFFIX, r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+", r"\p{N}", r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*", _LINES
)
_GPT4O = _either(_by_case(r"\p{L}", f"(?:{_SUFFIX})?"), r"\p{N}{1,3}", _SIGNS_OR_SLASH, _LINES)
_GRANITE = _either(_by_case(r"[\p{L}\p{M}]", f"(?:{_SUFFIX})?"), r"\p{N}{1,3}", _SIGNS_OR_SLASH, _LINES)
_MARKED_WORD = rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+(?:{_SUFFIX})?"
_DEEPSEEK_WORD = _either(rf"{_ASCII_SIGN}[A-Za-z]+", r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+")
_DEEPSEEK3 = _either(_DEEPSEEK_WORD, r" ?[\p{P}\p{S}]+[\r\n]*", _LINES)
_SPARK = _either(_DEEPSEEK_WORD, r" ?[\p{P}\p{S}]+", r"[\r\n]", _BLANKS)
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"

_ROWS: tuple[tuple[str, PreTokenizer], ...] = (
    (
        DEFAULT,
        PreTokenizer((r"[\p{P}$+<=>\^~|]+", _GPT2, r"\p{N}+", r"[0-9]{3}"), clean_spaces=True),
    ),
    (
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
        PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True, clean_spaces=True),
    ),
    ("dbrx smaug-bpe", PreTokenizer((_LLAMA3,), clean_spaces=True)),
    ("chatglm-bpe", PreTokenizer((_LLAMA3,), default_bos=False, clean_spaces=True)),
    ("glm4 glm5", PreTokenizer((_LLAMA3,), ignore_merges=True, default_bos=False, clean_spaces=True)),
    (
        "jais-2",
        PreTokenizer(
            (_either(_SUFFIX, _WORD, r"\p{N}{1,3}", _SIGNS, r"\s*[\r\n]+", _BLANKS_BY_TWOS),),
            clean_spaces=True,
        ),
    ),
    (
        "qwen2 deepseek-r1-qwen kormo f2llmv2 hunyuan solar-open grok-2 bailingmoe bailingmoe2 llada-moe",
        PreTokenizer((_QWEN2,)),
    ),
    ("stablelm2 megrez", PreTokenizer((_QWEN2,), clean_spaces=True)),
    ("qwen35", PreTokenizer((_QWEN35,))),
    ("laguna", PreTokenizer((r"[^\n]+|\n+", _QWEN2))),
    ("ufakzeka", PreTokenizer((_either(_WORD, r"\p{N}", _SIGNS, _LINES),))),
    (
        "seed-coder",
        PreTokenizer((_either(_SUFFIX, _WORD, r"\p{N}", r" ?[^\s\p{L}\p{N}\r\n]+", _LINES),)),
    ),
    (
        "exaone-moe",
        PreTokenizer(
            (
                _either(
                    _SUFFIX,
                    rf"[^\r\n\p{{L}}\p{{N}}]?(?:{_SYLLABLES})+",
                    r"\p{N}",
                    r" ?[^\s\p{L}\p{N}]+[\r\n/]?",
                    _LINES,
                ),
            ),
            clean_spaces=True,
            block_ends=_BLOCK_ENDS_OF_PHRASES,
        ),
    ),
    (
        "minicpm5",
        PreTokenizer(
            (r"\p{N}{1,3}", _either(_SUFFIX, _WORD, r"\p{N}+", _SIGNS, _LINES)),
            ignore_merges=True,
            clean_spaces=True,
        ),
    ),
    (
        "gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de jina-v1-en jina-v2-code roberta-bpe gigachat"
        " a.x-4.0 mellum modern-bert mpt olmo jais exaone4",
        PreTokenizer((_GPT2,), clean_spaces=True),
    ),
    ("trillion granite-docling", PreTokenizer((_GPT2,))),
    ("smollm command-r", PreTokenizer((r"\p{N}", _GPT2))),
    (
        "starcoder refact codeshell exaone minerva-7b mellum2",
        PreTokenizer((r"\p{N}", _GPT2), clean_spaces=True),
    ),
    (
        "falcon",
        PreTokenizer((r"[\p{P}$+<=>\^~|`]+", _GPT2, r"[0-9]{3}"), clean_spaces=True),
    ),
    (
        "chameleon",
        PreTokenizer(
            (
                r"<sentinel:[0-9]+>",
                r"IMGIMG[A-I]{1,4}Z",
                r"[\t\n]|    |  ",
                r"\p{N}",
                r"[\p{P}!-/:-@\[-`{-~]",
                _GPT2,
            ),
            add_bos=True,
        ),
    ),
    (
        "tekken",
        PreTokenizer(
            (_either(_by_case(r"\p{L}"), r"\p{N}", _SIGNS_OR_SLASH, _LINES),),
            ignore_merges=True,
            add_bos=True,
        ),
    ),
    ("gpt-4o llama4 kanana2 talkie minimax-m2", PreTokenizer((_GPT4O,))),
    ("granite-embed-multi-97m", PreTokenizer((_GRANITE,), ignore_merges=True)),
    (
        "tiny_aya cohere2moe",
        PreTokenizer((_DIGITS_FROM_THE_RIGHT, _either(_MARKED_WORD, r"\p{N}{1,3}", _SIGNS_OR_SLASH, _LINES))),
    ),
    ("afmoe", PreTokenizer((_DIGITS_FROM_THE_RIGHT, _ASIAN_LETTERS, _DEEPSEEK3))),
    (
        "youtu",
        PreTokenizer(
            (_ASIAN_SIGNS, _either(_MARKED_WORD, r"\p{N}", _SIGNS_OR_SLASH, _LINES)), ignore_merges=True
        ),
    ),
    (
        "superbpe",
        PreTokenizer((r"\p{N}+", r"(?=([0-9]{3})+(?![0-9]))"), block_ends=_BLOCK_ENDS_BESIDE_DIGITS),
    ),
    (
        "deepseek-llm",
        PreTokenizer(
            (
                r"[\r\n]",
                rf"\s?[{_CASED_LETTERS}]+",
                "\\s?[!-/:-~！-／：-～‘-‟\u3001-。]+",
                r"\s+\z",
                _HAN_HANGUL_AND_MORE,
                r"\p{N}+",
            )
        ),
    ),
    (
        "deepseek-coder",
        PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_HANGUL_AND_MORE, r"\p{N}")),
    ),
    (
        "deepseek-v3 hunyuan-dense joyai-llm hy_v4",
        PreTokenizer((r"\p{N}{1,3}", _HAN_AND_KANA, _DEEPSEEK3)),
    ),
    ("spark2_5", PreTokenizer((r"\p{N}{1,3}", _HAN_AND_KANA, _SPARK, r"\p{N}"))),
    ("poro-chat", PreTokenizer((_BLOOM,), block_ends=_BLOCK_ENDS_OF_ANY_SIGNS)),
    ("bloom gpt3-finnish", PreTokenizer((_BLOOM,), clean_spaces=True, block_ends=_BLOCK_ENDS_OF_ANY_SIGNS)),
    ("viking", PreTokenizer((_BLOOM, r"\p{N}"))),
)

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    name: pre_tokenizer for names, pre_tokenizer in _ROWS for name in names.split()
}
"""Name in ``tokenizer.ggml.pre`` -> pre-tokenizer."""
