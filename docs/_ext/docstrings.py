"""Docstrings as reStructuredText, before autodoc reads them.

The docstrings of this project are for `help()` and an editor: Google's sections, formulas in plain characters, names in single
backticks. Here a formula becomes mathematics, a public name a link, an indented table a table. Sections such as `Args:` are
left to sphinx.ext.napoleon.
"""

import inspect
import re

import catalogue
import formulas

SECTION = re.compile(r"(Args|Returns|Yields|Raises|Attributes|Example|Examples|Example, .*):$")
PAGE = re.compile(r"docs/([\w/-]+)\.md")
LONG = re.compile(r"`([^`]{45,})`(?:[.,] )?(.*)")  # a paragraph that begins with a long formula
INDEX, POWER = r"_(?:\{[^}]*\}|[A-Za-z0-9]{1,3}(?!\w))", r"\^(?:\([^)]*\)|[A-Za-z0-9]{1,3}(?!\w))"
INDEXED = re.compile(rf"(?<![\w`\\])([A-Za-zα-ωΑ-Ωṽẽ][\u0303\u0302]?'?(?:{INDEX}(?:{POWER})?|{POWER}))")


def to_rest(lines, scope):
    """The lines of a docstring (dedented) of something in the module `scope`, as reST."""
    result, place = [], 0
    while place < len(lines):
        if match := SECTION.match(lines[place]):
            end = _end_of_block(lines, place + 1)
            result += ["", *_section(match[1], lines[place + 1: end], scope), ""]
        elif not lines[place].strip():
            result.append("")
            end = place + 1
        elif lines[place].startswith(("    ", "|")):
            end = place
            while end < len(lines) and (lines[end].startswith(("    ", "|")) or not lines[end].strip()):
                end += 1
            whole = "\n".join(lines[place:end]).rstrip()
            blocks = [whole] if ">>>" in whole or re.match(r" +(from|import) ", whole) else re.split(r"\n\s*\n", whole)
            result += [line for block in blocks for line in ("", *_block(block, scope), "")]
        else:
            end = place + 1
            hanging = re.match(r"(?:Shapes|Forward|Backward): |[-*] |\d+\. ", lines[place])
            while end < len(lines) and lines[end].strip() and (hanging or not lines[end].startswith("    ")) and not (
                    SECTION.match(lines[end]) or re.match(r"[-*] |\d+\. ", lines[end])):
                end += 1
            paragraph = " ".join(line.strip() for line in lines[place:end])
            if (formula := LONG.match(paragraph)) and formulas.is_inline_formula(formula[1]):  # too long for a line of text
                result += ["", ".. math::", "", f"   {formulas.latex(formula[1])}", ""]
                paragraph = formula[2]
            result += [*([""] if hanging else []), inline(re.sub(r"^([A-Z]\w+:) ", r"**\1** ", paragraph, count=1)
                                                          if hanging and hanging[0].endswith(": ") else paragraph, scope)]
        place = end
    return result


def inline(text, scope):
    """One paragraph: `code` as a link, a formula or a literal; *emphasis* stays; the rest is escaped."""
    parts = re.split(r"(?<!`)`([^`]+)`(?!`)", text.replace("\n", " "))
    result = ""
    for i, part in enumerate(parts):
        if i % 2:
            result = _attach(result, code(re.sub(r"\s+", " ", part), scope))
        else:
            for j, piece in enumerate(INDEXED.split(part)):
                if j % 2:
                    result = _attach(result, f":math:`{formulas.inline(piece)}`")
                else:
                    plain = PAGE.sub(r":doc:`/\1`", escaped(piece))
                    result += ("\\ " if result.endswith("`") and plain[:1] not in ("", " ") else "") + plain
    return re.sub(r"^(\w+[.)])(?= |$)", r"\\\1", result)  # "P." would begin a list


def code(text, scope):
    """What stands in backticks."""
    if formulas.is_inline_formula(text):
        return f":math:`{formulas.inline(text)}`"
    full = catalogue.resolve(text, scope)
    literal = f"``{text}``" if "\\" not in text[-1:] else f"``{text} ``"
    return f":py:obj:`{text} <{full}>`" if full and "`" not in text and "<" not in text else literal


def _attach(before, role):
    return before + ("\\ " if before and not before.endswith((" ", "\\ ")) else "") + role


def escaped(text):
    """Text without inline markup other than *emphasis*."""
    text = text.replace("\\", r"\\").replace("|", r"\|").replace("_", r"\_")
    return re.sub(r"(?<![*\w])\*(?=[^*]*$)", r"\\*", text) if text.count("*") % 2 else text


def _end_of_block(lines, place):
    while place < len(lines) and (not lines[place].strip() or lines[place].startswith(" ")):
        place += 1
    return place


def _section(name, lines, scope):
    if name.startswith("Example"):
        return [".. rubric:: " + inline(name, scope), "", *(line[4:] for line in lines)]
    items = []
    for line in (line[4:] for line in lines):
        if line.startswith(" ") and items:
            items[-1] += " " + line.strip()
        elif line.strip():
            items.append(line)
    described = []
    for item in items:
        head, colon, text = re.match(r"([\w*,. ]+?(?:: ))?(.*)", item).group(1) or "", "", item
        text = item[len(head):]
        described.append(f"    {head}{colon}{inline(text, scope)}")
    return [f"{name}:", *described]


def _block(text, scope):
    """An indented block: a formula, a table, an example, a list of names, or lines as they are."""
    lines = text.splitlines()
    depth = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    lines = [line[depth:] for line in lines]
    if lines[0].startswith(">>>"):
        return lines
    if lines[0].startswith("|") and lines[0].endswith("|"):
        return _table(lines, scope)
    if formulas.is_formula("\n".join(lines)):
        return [".. math::", "", *(f"   {line}" for line in formulas.latex("\n".join(lines)).splitlines())]
    if re.match(r"[\w, ]+: \S", lines[0]):
        return _names(lines, scope)
    language = "python" if re.search(r"^(from|import|net|\w+ = )\b", lines[0]) else "none"
    return [f".. code-block:: {language}", "", *(f"   {line}" for line in lines)]


def _names(lines, scope):
    items = []
    for line in lines:
        if re.match(r"[\w, ]+: \S", line):
            items.append(line)
        else:
            items[-1] += " " + line.strip()
    return ["- **{}**: {}".format(item.split(": ")[0], inline(item.split(": ", 1)[1], scope)) for item in items]


def _table(lines, scope):
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    header = 1 if not rows[0][0] or len(rows[0]) > 2 or " " not in rows[0][1] else 0
    table = [".. list-table::", f"   :header-rows: {header}", ""]
    for row in rows:
        table += [f"   {'* -' if i == 0 else '  -'} {inline(cell, scope)}" for i, cell in enumerate(row)]
    return table


def process(app, what, name, obj, options, lines):
    """autodoc-process-docstring: in place, before napoleon."""
    if what == "module":  # autodoc takes the indentation of a module's last lines for that of all
        lines[:] = inspect.cleandoc(f"\n{obj.__doc__ or ''}\n.").splitlines()[:-1]
    scope = name if what == "module" else name.rsplit(".", 1 if what in ("class", "function", "data") else 2)[0]
    lines[:] = to_rest(list(lines), scope)


def skip(app, what, name, obj, skipped, options):
    """Leave out what a NamedTuple or a dataclass says of its own fields."""
    return True if str(getattr(obj, "__doc__", "")).startswith("Alias for field number") else None


def setup(app):
    app.connect("autodoc-process-docstring", process, priority=400)
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True}
