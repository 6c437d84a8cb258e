"""Cutting texts into segments and filtering them one by one; splitting seed pairs. Knows no models."""

import ast
import bisect
import inspect
import itertools
import random
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backtranslation import dedup
from backtranslation.readers import Problem
from backtranslation.records import Row, drop, row_id

# A header is a Markdown "# ..." line, or a line underlined with one repeated character (reStructuredText).
_HEADER = re.compile(r"^(?:(?P<hashes>#{1,6}) +\S.*|(?P<title>\S.*)\n(?P<rule>([=\-~*^\"'+])\4{2,}))[ \t]*$", re.MULTILINE)


# Where a sentence ends, with the closing marks that belong to it and the space behind it.
_SENTENCE_END = re.compile(r"""[.!?…。！？؟۔।॥\u037e]["'”’)\]]*(?:\s+|(?<=[。！？]))""")


# Lines whose place matters: code, tables, indented blocks.
_LAID_OUT = re.compile(r"^(?:[ \t|+]|```)", re.MULTILINE)


def _fenced(text: str) -> list[tuple[int, int]]:
    """(start, end) of the Markdown code blocks; a block that is never closed is none."""
    spans, opened, start, at = [], "", 0, 0
    for line in text.splitlines(keepends=True) if "```" in text else []:
        if mark := re.match("`{3,}", line):
            if not opened:
                opened, start = mark[0], at
            elif len(mark[0]) >= len(opened) and not line.strip().strip("`"):
                spans.append((start, at + len(line)))
                opened = ""
        at += len(line)
    return spans


def _headers(text: str) -> list[tuple[int, str]]:
    """(offset, mark) of each header; the mark tells levels apart (`#` count or underline character)."""
    found = []
    fenced = _fenced(text)
    ends = [end for _, end in fenced]
    for match in _HEADER.finditer(text):
        block = bisect.bisect_right(ends, match.start())
        if block < len(fenced) and fenced[block][0] <= match.start():
            continue  # a comment in code
        if match["hashes"]:
            found.append((match.start(), match["hashes"]))
        elif len(match["rule"]) >= min(3, len(match["title"].rstrip())):
            found.append((match.start(), match["rule"][0]))
    return found


def _split_at(text: str, offsets: list[int]) -> list[str]:
    bounds = [0, *offsets, len(text)]
    pieces = [text[start:end].strip() for start, end in itertools.pairwise(bounds)]
    return [piece for piece in pieces if piece]


def cut(text: str, max_chars: int) -> list[str]:
    """Cut a text at its headers, highest level first, until each piece has at most `max_chars` characters.

    A section keeps its subsections as long as it fits (paper, section 3.1: a header with its
    lower-level subtree). A section without headers is packed from its paragraphs, a paragraph that is
    longer from its sentences. A longer sentence, code block or table stays whole; no text is lost.
    """
    text = text.strip()
    if len(text) <= max_chars:
        return [text] if text else []
    headers = _headers(text)
    # A header at offset 0 is the title of this very section.
    inner = [(offset, mark) for offset, mark in headers if offset > 0]
    if inner:
        title_mark = headers[0][1] if headers[0][0] == 0 else None
        marks = {mark for _, mark in inner}
        # Levels: fewer hashes are higher; for underlines the first one met is the highest.
        top = min(marks, key=lambda m: (len(m), [mark for _, mark in inner].index(m)))
        if title_mark in marks:
            top = title_mark
        pieces = _split_at(text, [offset for offset, mark in inner if mark == top])
        if len(pieces) > 1:
            return [part for piece in pieces for part in cut(piece, max_chars)]
    return _packed(_paragraphs(text), "\n\n", max_chars)


def _paragraphs(text: str) -> list[str]:
    """The paragraphs of a text; a code block is one, whatever blank lines it has."""
    found: list[str] = []
    at = 0
    for start, end in _fenced(text):
        found += [*re.split(r"\n[ \t]*\n", text[at:start].strip("\n")), text[start:end].strip("\n")]
        at = end
    return found + re.split(r"\n[ \t]*\n", text[at:].strip("\n") if at else text)


def _packed(parts: list[str], joint: str, max_chars: int) -> list[str]:
    """Consecutive parts joined to pieces of at most `max_chars` characters; a longer paragraph is cut at its sentences."""
    pieces: list[str] = []
    current: list[str] = []
    size = 0
    for part in parts:
        if current and size + len(joint) + len(part) > max_chars:
            pieces.append(joint.join(current).strip())
            current, size = [], 0
        if len(part) > max_chars and joint == "\n\n" and not _LAID_OUT.search(part):
            ends = [match.end() for match in _SENTENCE_END.finditer(part)]
            sentences = [part[start:end] for start, end in itertools.pairwise([0, *ends, len(part)]) if start < end]
            pieces += _packed(sentences, "", max_chars)
            continue
        if not part and not current:
            continue
        size += len(part) + (len(joint) if current else 0)
        current.append(part)
    pieces.append(joint.join(current).strip())
    return [piece for piece in pieces if piece]


def python_topics() -> Iterator[tuple[str, str]]:
    """(name, text) of the topics of Python's language reference, as every installation carries them."""
    from pydoc_data.topics import topics

    yield from sorted(topics.items())


def python_docstrings() -> Iterator[tuple[str, str]]:
    """(qualified name, docstring) of the standard library, read with `ast`; nothing is imported."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        relative = path.relative_to(library)
        # Tests, vendored packages and what the user installed are not the standard library.
        if {"test", "tests", "idle_test", "site-packages", "lib2to3", "_vendor"} & set(relative.parts):
            continue
        try:
            module = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # some files show old syntax on purpose
            continue
        prefix = ".".join(relative.with_suffix("").parts)
        for node in ast.walk(module):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node, clean=False)
                if text:
                    name = getattr(node, "name", "")
                    yield f"{prefix}:{name}:{getattr(node, 'lineno', 0)}", inspect.cleandoc(text)


# Headers that name a place to click or a list of links; numbered ones are sections that have such a name.
_NAVIGATION = re.compile(
    r"(?:home|menu|main menu|navigation|site ?map|search|(?:table of )?contents|index|archives?|categor(?:y|ies)|tags?|"
    r"(?:see|read) (?:also|more|next)|more|further reading|external links|links|(?:related|popular|recent|latest|similar) "
    r"(?:posts?|articles?|links?|pages?|topics?|stories|news|comments)|(?:leave a )?(?:reply|comments?)|share(?: this.*)?|follow us|"
    r"(?:log|sign) ?(?:in|up|out)|register|subscribe|newsletter|advertisements?|about us|contact(?: us)?|"
    r"(?:privacy|cookie)s?(?: policy| notice)?|terms (?:of|and) .*|copyright.*|legal notice|imprint|disclaimer|previous|next|back to top)"
    r"\W*",
    re.IGNORECASE,
)
_BULLET = re.compile(r"^[ \t]*(?:[-*+•‣◦▪·–—]|\d{1,3}[.)])[ \t]", re.MULTILINE)
_LETTERS_DIGITS_SPACE = bytes(range(48, 58)) + bytes(range(65, 91)) + bytes(range(97, 123)) + b" \t\n"
_NOT_UPPERCASE = bytes(set(range(256)) - set(range(65, 91)))
_NOT_LETTERS = bytes(set(range(256)) - set(range(65, 91)) - set(range(97, 123)))
# Marks that belong to prose, as opposed to formulas, tables and code.
_PROSE_MARKS = b".,;:!?'\"()-"
_SIGNS_OF_LETTERS = frozenset(dedup.MARKS)
_FINISHED = re.compile(r"""[.!?…。！？؟۔।॥\u037e"'”’»)\]`*_>|}]$|(?<=[\u0370-\u03ff\u1f00-\u1fff]);$|^\s*```""")


def _header_problem(text: str) -> Problem | None:
    """The paper drops segments with empty, all-uppercase and navigation headers."""
    match = _HEADER.match(text)
    if not match:
        return None
    title = (match["title"] or match[0].lstrip("#")).strip()
    letters = [c for c in title if c.isalpha()]
    if not letters:
        return Problem("empty_header", f"{title!r} holds no letter")
    # Shorter ones are names: API, LDAP, README.
    if len(letters) > 6 and all(c.isupper() for c in letters):
        return Problem("uppercase_header", title)
    if _NAVIGATION.fullmatch(title):
        return Problem("navigation_header", title)
    return None


def _repeated(text: str) -> float:
    """Share of the sentences that nearly repeat an earlier one: a Jaccard index of 0.6 or more between their word trigrams."""
    sentences = []
    for sentence in re.split(r"[.!?。！？؟۔।॥\u037e]\s|\n", text)[:200]:
        words = sentence.lower().split()
        # Shorter ones, such as the cells of a table, may well recur.
        if len(words) >= 5:
            sentences.append(set(zip(words, words[1:], words[2:], strict=False)))
    if len(sentences) < 2 or len(set().union(*sentences)) == sum(map(len, sentences)):
        return 0.0
    repeated = 0
    seen: set[tuple[str, str, str]] = set()
    for place, one in enumerate(sentences):
        # Without so many trigrams from anywhere before, no single sentence can have them.
        if len(one & seen) >= 0.6 * len(one):
            repeated += any(len(one & other) >= 0.6 * len(one | other) for other in sentences[:place])
        seen |= one
    return repeated / len(sentences)


def _unfinished(text: str) -> Problem | None:
    """Prose that begins or ends in the middle of a sentence; code, lists and tables need no full stop."""
    lines = text.rstrip().split("\n")
    last, first = lines[-1], lines[0]
    prose = not last.startswith((" ", "\t", "#", "|")) and not _BULLET.match(last)
    if prose and not _FINISHED.search(last):
        return Problem("unfinished", f"ends with {last[-40:]!r}")
    if first[0].islower() and len(first.split()) > 3 and first.split()[0].isalpha():
        return Problem("unfinished", f"begins with {first[:40]!r}")
    return None


def problem(text: str, filters: dict[str, Any]) -> Problem | None:
    """Why a segment is not a text to learn from, or None; `filters` are the configuration's, each a switch.

    Reasons: `empty_header`, `uppercase_header`, `navigation_header`, `repetitive`, `capitals`, `symbols`, `bullets`,
    `unfinished`. The first four and `capitals` are the paper's (appendix on the unlabelled data).
    """
    if filters["headers"] and (found := _header_problem(text)):
        return found
    plain = text.encode() if text.isascii() else text.encode("ascii", "replace")
    if (most := filters["capitals"]) is not None:
        # Outside of ASCII, letter by letter; within, a hundred times as fast.
        upper = len(plain.translate(None, _NOT_UPPERCASE)) if text.isascii() else sum(map(str.isupper, text))
        letters = len(plain.translate(None, _NOT_LETTERS)) if text.isascii() else sum(map(str.isalpha, text))
        if upper > most * max(letters, 1):
            return Problem("capitals", f"{upper / max(letters, 1):.0%} of the letters are capitals")
    if (most := filters["symbols"]) is not None:
        symbols = len(plain.translate(None, _LETTERS_DIGITS_SPACE + _PROSE_MARKS))
        if not text.isascii():
            symbols = sum(1 for c in text if not c.isalnum() and not c.isspace() and c not in _SIGNS_OF_LETTERS and not (c.isascii() and c.encode() in _PROSE_MARKS))
        if symbols > most * len(text):
            return Problem("symbols", f"{symbols / len(text):.0%} of the characters are symbols")
    if (most := filters["bullets"]) is not None:
        lines = sum(1 for line in text.split("\n") if line.strip())
        bullets = len(_BULLET.findall(text))
        if bullets > most * lines:
            return Problem("bullets", f"{bullets} of {lines} lines are list items")
    if (most := filters["repetition"]) is not None and (share := _repeated(text)) > most:
        return Problem("repetitive", f"{share:.0%} of the sentences repeat an earlier one")
    return _unfinished(text) if filters["unfinished"] else None


_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{2,63}){1,4}")
# No dates and no spans of years.
_PHONE = re.compile(r"(?<![\w.,:/-])(?!(?:19|20)\d\d-(?:\d\d-\d\d|(?:19|20)\d\d)\b)(?:\+\d{1,3}[ .-]?)?(?:\(\d{1,5}\)[ .-]?)?\d{2,5}(?:[ .-]\d{2,5}){1,4}(?![\w:/-]|\.\d)")


def mask(text: str) -> str:
    """`text` with e-mail addresses and telephone numbers (7 to 15 digits in groups) replaced by <email> and <phone>."""

    def hidden(match: re.Match[str]) -> str:
        digits = sum(map(str.isdigit, match[0]))
        return "<phone>" if 7 <= digits <= 15 else match[0]

    return _PHONE.sub(hidden, _EMAIL.sub("<email>", text))


def segment(documents: list[Row], filters: dict[str, Any]) -> tuple[list[Row], list[Row], list[Row]]:
    """Cut documents and filter the pieces one by one.

    Each document carries `text`, `source`, `row`, `true_instruction`, `licence`, `stratum`, `source_number` and the
    settings of its source: `cut`, `min_chars`, `max_chars`, `language`. Returns (all pieces, kept, dropped); reasons:
    `too_short`, `too_long`, `language`, `no_licence`, `licence`, and those of `problem`.
    """
    pieces, kept, dropped = [], [], []
    allowed = filters["licences"]
    for document in documents:
        settings = document["settings"]
        text = mask(document["text"]) if filters["mask_personal_data"] else document["text"]
        for part, piece_text in enumerate(cut(text, settings["max_chars"]) if settings["cut"] else [text.strip()], start=1):
            piece = {
                "id": row_id(document["source"], str(document["row"]), str(part), piece_text),
                "source": document["source"],
                "row": document["row"],
                "part": part,
                "text": piece_text,
                "true_instruction": document["true_instruction"],
                "source_number": document["source_number"],
                "stratum": document["stratum"],
            }
            pieces.append(piece)
            size = len(piece_text)
            found: Problem | None = None
            if allowed is not None and not document["licence"]:
                found = Problem("no_licence", "the row names no licence")
            elif allowed and document["licence"] not in allowed:
                found = Problem("licence", document["licence"])
            elif size < settings["min_chars"]:
                found = Problem("too_short", f"{size} < {settings['min_chars']} characters")
            elif size > settings["max_chars"]:
                found = Problem("too_long", f"{size} > {settings['max_chars']} characters")
            elif settings["language"] and (language := language_of(piece_text)) != settings["language"]:
                found = Problem("language", f"{language}, not {settings['language']}")
            else:
                found = problem(piece_text, filters)
            if found:
                dropped.append(drop(piece, "segment", found.reason, found.detail))
            else:
                kept.append(piece)
    return pieces, kept, dropped


def language_of(text: str) -> str:
    """ISO 639-1 code of the text's language by py3langid, whose model ships in its wheel."""
    import py3langid

    return py3langid.classify(text)[0]


def split(pairs: list[Row], heldout: float, random_seed: int) -> tuple[list[Row], list[Row]]:
    """Split pairs into train and held-out, by ids and seed alone; answers to one instruction stay together.

    Raises ValueError when either part would be empty.
    """
    ordered = sorted(pairs, key=lambda row: row["id"])
    random.Random(random_seed).shuffle(ordered)
    answers: dict[str, set[str]] = {}
    for row in ordered:
        answers.setdefault(row["instruction"], set()).add(row["id"])
    count = round(len(pairs) * heldout)
    chosen: set[str] = set()
    for ids in answers.values():
        if len(chosen) < count:
            chosen |= ids
    if not 0 < len(chosen) < len(pairs):
        raise ValueError(
            f"seed.heldout: {heldout} of {len(pairs)} pairs leaves {len(chosen)} to measure on and "
            f"{len(pairs) - len(chosen)} to train on; both need at least one, and answers to one instruction stay together"
        )
    return [r for r in pairs if r["id"] not in chosen], [r for r in pairs if r["id"] in chosen]
