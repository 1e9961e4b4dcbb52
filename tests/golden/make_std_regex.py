"""Record what GCC's std::regex finds: writes std_regex.json beside this file.

Usage: python make_std_regex.py (needs g++)

Each pattern is searched for in each name. The record has a digit per name, or "e" where the pattern is
refused. Most patterns are drawn from pieces, so that they combine what no one would write by hand.
"""

from __future__ import annotations

import json
import random
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
GOLDEN = HERE / "std_regex.json"

PROGRAM = r"""
#include <iostream>
#include <regex>
#include <string>
int main() {
    std::string count, pattern, name;
    while (std::getline(std::cin, pattern) && std::getline(std::cin, count)) {
        std::regex compiled;
        bool sound = true;
        try { compiled = std::regex(pattern); } catch (const std::regex_error &) { sound = false; }
        for (int i = std::stoi(count); i > 0; --i) {
            std::getline(std::cin, name);
            if (sound) std::cout << std::regex_search(name, compiled);
        }
        std::cout << (sound ? "\n" : "e\n");
    }
}
"""

NAMES = [
    "blk.0.attn_v.weight",
    "blk.12.ffn_down_exps.weight",
    "blk.3.attn_k_norm.weight",
    "v.blk.10.x",
    "output.weight",
    "token_embd.weight",
    "A.B_C",
    "a-b c",
    "aab",
    "a\\b[c]{d}^$",
    "gr\u00f6\u00dfe.weight",
    "",
]

WRITTEN = r"""
attn_v
^attn_v
weight$
^output\.weight$
blk\.(0|1|5)\.(attn_v|ffn_down)
blk\.[0-9]+\.attn_v
blk\.([0-9]|1[0-9])\.ffn_(up|down)_exps
[[:digit:]]+\.attn_v
[[:alpha:]]{5}
[^[:space:]]+
[^[:print:]]
[[:ALPHA:]_]+\.
[[:w:]]\.
[[:d:][:s:]]
[\d.]+
[\w -]+b
[a-c-e]
[--/]
[+--]
[]
[^]
[]a]
[^]a]
[[a]
[a[b]
[a-z
[z-a]
[\d-z]
[a-\d]
[:alpha:]
[[:alpha:]
[[:nosuch:]]
[[=a=]]
[[.a.]]
[[.hyphen.]]
\d+\D
\s\S
\w\W
\ba
\Ba
\b
\B
[\b]
\_v
\-b
\.
\/
\e
\A
\Z
\z
\cA
\x61
\x6
\xg0
\u0061
\u006
\0
\1
(a)\1
(a\1)
a{2}
a{2,}
a{1,3}b
a{,3}
a{3,1}
a{
a{b
{
}
]
a}
a]
a**
a*+
a++
a*?b
a+?b
a??b
a{2}?b
a???
*
+a
?
|
a|
|a
()
(|a)
(
)
(a
a)
(?:aa)b
(?=a)a
a(?=b)
a(?!b)
(?!.*norm).*attn
(?!a)*
^*
$+
\b+
(?<=a)b
(?<!a)b
(?<n>a)
(?P<n>a)
(?i)A
(?>a)
(?#c)a
(?a)
(?
.
..{9}
^.{5}$
^$
a.b
(a*)*b
(a|aa)+b
((a)+)+b
ß
ö.?e
gr.{2}.{2}e
"""

PIECES = [
    *("a", "b", "attn", "_", "v", "0", "12", ".", r"\.", r"\d", r"\D", r"\w", r"\W", r"\s", r"\b", r"\B"),
    *("^", "$", "(", ")", "(?:", "(?=", "(?!", "|", "*", "+", "?", "{2}", "{1,}", "{0,2}", "*?", "+?"),
    *("[", "]", "[a-c]", "[^a]", "[[:digit:]]", "[[:alpha:]_]", "[^[:space:]]", r"[\d-]", r"[\w.]", "-"),
    *(r"\x2e", r"\u0062", "}", "{", r"\_", "[a-c-e]", "[--/]", "[-a]", "[a-]", "[[a]", "[[:punct:]]"),
    *(r"\\", r"\[", r"[\]]", "[.]", "[a^]", " "),
]


def patterns() -> list[str]:
    rng = random.Random(20)
    drawn = ["".join(rng.choices(PIECES, k=rng.randint(2, 7))) for _ in range(600)]
    return list(dict.fromkeys([*WRITTEN.strip().splitlines(), *drawn]))


def main() -> None:
    asked = patterns()
    lines = [line for pattern in asked for line in (pattern, str(len(NAMES)), *NAMES)]
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "search.cpp"), Path(folder, "search")
        source.write_text(PROGRAM)
        subprocess.run(["g++", "-std=c++17", "-O1", source, "-o", program], check=True)
        text = "\n".join(lines) + "\n"
        answers = subprocess.run([program], input=text, capture_output=True, text=True, check=True).stdout
    found = dict(zip(asked, answers.split("\n"), strict=False))
    record = {"about": "what std::regex finds; see the script beside", "names": NAMES, "found": found}
    GOLDEN.write_text(json.dumps(record, indent=0, ensure_ascii=True) + "\n")


if __name__ == "__main__":
    main()
