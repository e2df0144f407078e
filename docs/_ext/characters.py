"""The characters of plain formulas, and what they are called in LaTeX."""

import re

GREEK = dict(zip("αβγδεζηθκλμνξπρστφχψωΓΔΘΛΞΠΣΦΨΩ",
                 re.findall(r"\w+", "alpha beta gamma delta varepsilon zeta eta theta kappa lambda mu nu xi pi rho sigma tau "
                            "varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"), strict=True))
ACCENTS = {"\u0303": "tilde", "\u0302": "hat", "\u0304": "bar", "\u0305": "bar", "\u0307": "dot"}
SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ᵗⁿ", "0123456789+-tn", strict=True)) | {"ᵀ": r"\mathsf{T}"}
SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉ᵢₜ", "0123456789it", strict=True))
OPERATORS = {"<->": r"\leftrightarrow", "<-": r"\leftarrow", "->": r"\to", "<=": r"\le", ">=": r"\ge", "!=": r"\ne",
             "+=": r"\mathrel{+}=", "=": "=", "<": "<", ">": ">", "≤": r"\le", "≥": r"\ge", "≈": r"\approx", "≠": r"\ne",
             "→": r"\to", "←": r"\leftarrow",
             "∈": r"\in", "+": "+", "-": "-", "−": "-", "±": r"\pm", "·": r"\cdot", "×": r"\times", "⊙": r"\odot", "*": "*",
             ",": ",", ";": ";", ":": r"\colon", ".": ".", "@": r"\mathbin{@}", "Σ": r"\sum", "∏": r"\prod"}
RELATIONS = {"<-", "->", "<=", ">=", "=", "<", ">", "≤", "≥", "≈", "≠", "→", "←", "∈", "!=", "+="}
SYMBOLS = {"∞": r"\infty", "…": r"\dots", "...": r"\dots", "½": r"\tfrac12", "%": r"\%", "°": r"^\circ", "∘": r"\circ"}
