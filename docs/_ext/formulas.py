"""The plain formulas of docstrings and pages, as LaTeX: `w̃' = w̃ - (η / P') u` becomes what MathJax draws.

Formulas in this project are written so that a terminal and an editor can show them: Greek letters, w̃ and x̂, α^(-2t-1), κ_{t+1},
√(…), <u, v>, |w|², words for whatever has a name. Columns are three spaces apart. This module reads that notation.
`latex` gives the body of a displayed formula, `inline` that of one in a sentence; both escape what they do not know, so that
a strange character is shown as it is.
"""

import re
import unicodedata
from itertools import zip_longest

from characters import ACCENTS, GREEK, OPERATORS, RELATIONS, SUBSCRIPTS, SUPERSCRIPTS, SYMBOLS

FUNCTIONS = re.findall(r"\w+", "min max log ln exp sin cos tan arcsin arccos arctan arctan2 atan2 sqrt sign sgn abs "
                       "softmax onehot silu sigmoid orthogonal")
PAIRS = {"(": ")", "[": "]", "{": "}"}
WORD = (r"[A-Za-z]{2,}(?:[-'][A-Za-z]+)*"
        rf"(?: (?!(?:{'|'.join(FUNCTIONS)})\b)(?:[A-Za-z]{{2,}}|a|I)(?![\w(^'\u0300-\u036f]))*")
TOKEN = re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in {
    "space": r"\s+",
    "number": r"\d{1,3}(?:,\d{3})+(?![\d])|\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![A-Za-z]{2})",
    "differential": r"d(?=[A-Za-zα-ωΑ-Ω][\u0300-\u036f]*(?![A-Za-z\u0300-\u036f]))",
    "name": r"[A-Za-z]{2,}(?:_[A-Za-z]{2,}\d*)+|[A-Z]{3,}\b|\w*[A-Za-z]\w*\.\w+",
    "function": rf"(?:{'|'.join(sorted(FUNCTIONS, key=len, reverse=True))})(?![A-Za-z])",
    "word": WORD,
    "prefix": r"[∂∇]",
    "root": "√",
    "letter": r"[^\W\d_][\u0300-\u036f]*(?<![Σ])",
    "open": r"[(\[{]", "close": r"[)\]}]", "bar": r"\|",
    "symbol": "|".join(map(re.escape, sorted(SYMBOLS, key=len, reverse=True))),
    "slash": "/",
    "operator": "|".join(map(re.escape, sorted(OPERATORS, key=len, reverse=True))),
    "other": ".",
}.items()), re.DOTALL)
SCRIPTS = re.compile(r"(?P<prime>'+)|(?P<up>\^)|(?P<down>_)|(?P<high>[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ᵀᵗⁿ]+)|(?P<low>[₀₁₂₃₄₅₆₇₈₉ᵢₜ]+)")
WIDTH = 78  # characters of a displayed formula that a page has room for
INNER = re.compile(r"<(?=[^\s=-])([^<>=]*[^\s<>=-])>")  # <u, v>: no blank inside the angles


def latex(text, fractions=True):
    """The body of a displayed formula of one or more lines, aligned at the first relation of each line.

    Columns are aligned, too, if they fit a page then.
    """
    lines = [line for line in unicodedata.normalize("NFC", text).splitlines() if line.strip()]
    lines = [part for line in lines for part in _fitting(line)]
    wide = sum(max(map(len, column)) + 6 for column in zip_longest(*map(_columns, lines), fillvalue="")) > WIDTH + 6
    rows = [_row(unicodedata.normalize("NFD", line), fractions, r" \qquad " if wide else " && ") for line in lines]
    if len(rows) == 1:
        return rows[0].replace("&& ", r"\qquad ").replace("&", "")
    return "\\begin{aligned}\n" + " \\\\\n".join(rows) + "\n\\end{aligned}"


def inline(text):
    """A formula in a sentence, with slashes for fractions."""
    return _flat(unicodedata.normalize("NFD", text), fractions=False)


def is_formula(text):
    """Whether an indented block is a formula, not a command, code, or a table of words."""
    lines = [line for line in text.splitlines() if line.strip()]
    if re.search(r">>>|\bimport \w|^\s*(def|class|for|with|return) |\w\.\w+\(|^\s*\|.*\|$| --\w|\"|^\s*#|\.py\b", text, re.M):
        return False
    relation = any(kind == "operator" and value in RELATIONS for line in lines for kind, value in _tokens(line))
    return bool(lines) and (relation or not any(
        kind in ("word", "name") for line in lines for kind, value in _tokens(_columns(line)[0])))


def is_inline_formula(text):
    """Whether `text` in backticks is a formula: it has a letter or sign that no program has."""
    return bool(re.search(r"[α-ωΑ-Ω∇∂Σ√⁰-⁹²³ᵀᵗ₀-₉·≤≥≈∞\u0303\u0302ṽẽŵ]", text)) and not re.search(r"\w\.\w|[\"\[\]…]|…|--", text)


def _columns(line):
    return re.split(r"\s{3,}", line.strip())


def _fitting(line):
    """The line, or as many lines as it takes for its columns to fit a page."""
    parts = []
    for column in _columns(line):
        if parts and len(parts[-1]) + len(column) + 6 <= WIDTH:
            parts[-1] += "      " + column
        else:
            parts.append(column)
    return parts


def _row(line, fractions, between):
    first, *others = _columns(line)
    body = _flat(first, fractions, align=True)
    if "&" not in body:
        body = "& " + body
    return body + "".join(f"{between}{_flat(column, fractions)}" for column in others)


def _flat(text, fractions, align=False):
    text = INNER.sub(r"⟨\1⟩", text.replace("`", "").strip())
    nodes, _ = _sequence(text, 0, None, fractions)
    return _join(nodes, fractions, align)


def _tokens(text):
    text = unicodedata.normalize("NFD", INNER.sub(r"⟨\1⟩", text.replace("`", "")))
    return [(match.lastgroup, match[0]) for match in TOKEN.finditer(text) if match.lastgroup != "space"]


# A node is (kind, LaTeX, what is inside its round brackets or None). Kinds: "atom" and "word", factors; "text", several words;
# "slash"; "relation"; "operator".


def _sequence(text, place, closer, fractions):
    """The nodes of `text` from `place` up to the bracket `closer`, and the place after it."""
    nodes = []
    while place < len(text):
        if closer and text[place] == closer:
            return nodes, place + 1
        node, place = _node(text, place, fractions)
        if node:
            nodes.append(node)
    return nodes, place


def _node(text, place, fractions):
    if text[place] in "⟨⟩":
        nodes, end = _sequence(text, place + 1, "⟩", fractions)
        return _scripted(text, end, rf"\langle {_join(nodes, fractions)} \rangle")
    match = TOKEN.match(text, place)
    kind, value, end = match.lastgroup, match[0], match.end()
    if kind == "space":
        return None, end
    if kind in ("open", "bar"):
        closer = PAIRS.get(value, "|")
        if kind == "bar" and "|" not in text[end:]:
            return ("text", r"\mid", None), end
        nodes, end = _sequence(text, end, closer, fractions)
        body = _join(nodes, fractions)
        if value == "(" and _is_fraction(nodes, fractions) and not SCRIPTS.match(text, end):
            return ("atom", body, body), end  # its bar does what the brackets did
        left, right = {"|": (r"\lvert ", r" \rvert"), "{": (r"\{", r"\}")}.get(value, (value, closer))
        if r"\frac" in body or r"\sqrt" in body:
            left, right = rf"\left{left}", rf"\right{right}"
        node, end = _scripted(text, end, f"{left}{body}{right}")
        whole = node[1] == f"{left}{body}{right}" and value == "("
        return ("atom", node[1], body if whole else None), end
    if kind == "close":
        return ("text", rf"\text{{{value}}}" if value != "}" else r"\}", None), end
    if kind == "slash":
        return ("slash", "/", None), end
    if kind == "operator" and value not in "Σ∏":
        return ("relation" if value in RELATIONS else "operator", OPERATORS[value], None), end
    if kind == "operator":
        node, end = _scripted(text, end, OPERATORS[value])
        return ("operator", node[1], None), end
    if kind in ("prefix", "differential", "root", "function"):
        return _with_next(text, end, kind, value, fractions)
    if kind in ("word", "name"):
        node, end = _scripted(text, end, rf"\text{{{unicodedata.normalize('NFC', value)}}}")
        if text[end:end + 1] == "(":  # a function's name
            argument, end = _node(text, end, fractions)
            return ("atom", node[1] + _bracketed(argument), None), end
        return ("text" if " " in value else "word", node[1], None), end
    node, end = _scripted(text, end, _letter(kind, value))
    if kind == "letter" and text[end:end + 1] == "(":  # L(w)
        argument, end = _node(text, end, fractions)
        node = ("atom", node[1] + _bracketed(argument), None)
    return node, end


def _is_fraction(nodes, fractions):
    divided = _divided(nodes) if fractions else nodes
    return len(divided) == 1 and divided[0][1].startswith(r"\frac")


def _bracketed(argument):
    """A function's argument, in brackets also where it is a fraction."""
    return argument[1] if argument[1].startswith(("(", r"\left(")) else rf"\left({argument[1]}\right)"


def _letter(kind, value):
    if kind == "letter":
        base = rf"\{GREEK[value[0]]}" if value[0] in GREEK else value[0]
        for mark in value[1:]:
            base = rf"\{ACCENTS[mark]}{{{base}}}" if mark in ACCENTS else base
        return base
    if kind == "symbol":
        return SYMBOLS[value]
    if kind == "number":
        mantissa, _, exponent = value.partition("e")
        mantissa = mantissa.replace(",", "{,}")
        power = rf"10^{{{int(exponent)}}}" if exponent else ""
        return rf"{mantissa} \cdot {power}" if power and mantissa != "1" else power or mantissa
    return rf"\text{{{value}}}"


def _with_next(text, end, kind, value, fractions):
    """∇L, ∂w, dx, √(…), max(…): with the factor that follows, one factor."""
    if kind == "function":
        head, end = _scripted(text, end, rf"\operatorname{{{value}}}")
        if value == "sqrt" and text[end:end + 1] == "(":
            value, kind = "√", "root"
        elif text[end:end + 1] == "(":
            argument, end = _node(text, end, fractions)
            return ("atom", head[1] + _bracketed(argument), None), end
        else:
            return ("operator" if text[end:end + 1] == " " else "atom", head[1], None), end
    while kind == "root" and text[end:end + 1] == " ":
        end += 1
    if end >= len(text):
        return ("atom", {"∇": r"\nabla", "∂": r"\partial"}.get(value, value), None), end
    node, end = _node(text, end, fractions)
    node = node or ("atom", "", None)
    if kind == "root":
        return ("atom", rf"\sqrt{{{node[1] if node[2] is None else node[2]}}}", None), end
    return ("atom", {"∇": r"\nabla ", "∂": r"\partial ", "d": r"\mathrm{d}"}[value] + node[1], None), end


def _scripted(text, end, base):
    """`base` with the primes, exponents and indices that follow it; β1 is β with an index."""
    up, down = "", ""
    if (match := re.match(r"\d+(?![\d.,]*\d)", text[end:])) and re.search(r"[A-Za-z}]$", base) and "text" not in base:
        down, end = match[0], end + match.end()
    while match := SCRIPTS.match(text, end):
        kind, value, end = match.lastgroup, match[0], match.end()
        if kind == "prime":
            up += r"\prime" * len(value)
        elif kind == "high":
            up += "".join(SUPERSCRIPTS[character] for character in value)
        elif kind == "low":
            down += "".join(SUBSCRIPTS[character] for character in value)
        else:
            script, end = _script(text, end)
            if kind == "up":
                up += script
            else:
                down += script
    return ("atom", base + (f"_{{{down}}}" if down else "") + (f"^{{{up}}}" if up else ""), None), end


def _script(text, end):
    """The exponent or index at `end`: {…}, (…), a number or a word, with a sign before it and an index of its own."""
    if text[end:end + 1] in ("{", "("):
        nodes, end = _sequence(text, end + 1, PAIRS[text[end]], False)
        return _join(nodes, False), end
    match = re.match(r"-?(?:\d+|[A-Za-zα-ω]+)", text[end:])
    if not match:
        return r"\_", end
    end += match.end()
    sign, word = ("-", match[0][1:]) if match[0][0] == "-" else ("", match[0])
    body = "".join(_letter("letter", c) if not c.isdigit() else c for c in word) if len(word) <= 2 else (
        word if word.isdigit() else rf"\text{{{word}}}")
    if text[end:end + 1] == "_" and (match := re.match(r"_([A-Za-z0-9])", text[end:])):
        body, end = f"{body}_{match[1]}", end + match.end()
    return sign + body, end


def _join(nodes, fractions, align=False):
    """LaTeX of a row of nodes. `a b / (c d)` becomes a fraction where no further factor follows the denominator."""
    nodes, text, last = _divided(nodes) if fractions else nodes, "", None
    for kind, body, _ in nodes:
        if kind == "relation" and align:
            body, align = "&" + body, False
        if {kind, last} & {"word", "text"} and {kind, last} <= {"word", "text", "atom"}:  # mathematics swallows blanks
            text += r"\ "
        elif text:
            text += " "
        text += body + (r"\ " if body in (",", ";") else "")
        last = kind
    return text.removesuffix(r"\ ")


def _divided(nodes):
    """`nodes` with fractions in place of slashes."""
    result, factors, literal, place = [], [], False, 0  # literal: a slash stands before these factors
    while place < len(nodes):
        kind, following = nodes[place][0], nodes[place + 1: place + 3]
        if kind in ("atom", "word"):
            factors.append(nodes[place])
        elif (kind == "slash" and factors and not literal and following and following[0][0] in ("atom", "word")
                and (len(following) == 1 or following[1][0] not in ("atom", "word"))):
            alone = r"\frac" in _join(factors, False) or following[0][1].startswith((r"\partial", r"\mathrm{d}"))
            start = -1 if alone else 0  # a (b / c) is (a b) / c: take what reads better
            factors[start:] = [("atom", rf"\frac{{{_bare(factors[start:])}}}{{{_bare(following[:1])}}}", None)]
            place += 1
        else:
            literal = kind == "slash"
            result += [*factors, nodes[place]]
            factors = []
        place += 1
    return result + factors


def _bare(nodes):
    """LaTeX of factors; of one in round brackets, without the brackets."""
    return nodes[0][2] if len(nodes) == 1 and nodes[0][2] is not None else _join(nodes, False)
