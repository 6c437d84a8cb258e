"""Cutting texts into segments, filtering, deduplication, sampling. Knows no models."""

import ast
import inspect
import itertools
import random
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backtranslation.records import Row, drop, row_id

# A header is a Markdown "# ..." line, or a line underlined with one repeated character (reStructuredText).
_HEADER = re.compile(r"^(?:(?P<hashes>#{1,6}) +\S.*|(?P<title>\S.*)\n(?P<rule>([=\-~*^\"'+])\4{2,}))[ \t]*$", re.MULTILINE)


def _headers(text: str) -> list[tuple[int, str]]:
    """(offset, mark) of each header; the mark tells levels apart (`#` count or underline character)."""
    found = []
    for match in _HEADER.finditer(text):
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
    lower-level subtree). A section without headers is packed from its paragraphs. A single
    paragraph that is longer stays whole; no text is lost.
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
    pieces, current = [], ""
    for paragraph in re.split(r"\n[ \t]*\n", text):
        joined = f"{current}\n\n{paragraph}" if current else paragraph
        if current and len(joined) > max_chars:
            pieces.append(current.strip())
            current = paragraph
        else:
            current = joined
    pieces.append(current.strip())
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


def segment(documents: list[Row], stage: str = "segment") -> tuple[list[Row], list[Row], list[Row]]:
    """Cut documents and filter the pieces.

    Each document carries `text`, `source`, `row`, `true_instruction` and the settings of its
    source: `cut`, `min_chars`, `max_chars`, `language`. Returns (all pieces, kept, dropped); reasons:
    `too_short`, `too_long`, `language`, `duplicate`.
    """
    pieces, kept, dropped = [], [], []
    seen: dict[str, str] = {}
    for document in documents:
        settings = document["settings"]
        texts = cut(document["text"], settings["max_chars"]) if settings["cut"] else [document["text"].strip()]
        for part, text in enumerate(texts, start=1):
            piece = {
                "id": row_id(document["source"], str(document["row"]), str(part), text),
                "source": document["source"],
                "row": document["row"],
                "part": part,
                "text": text,
                "true_instruction": document["true_instruction"],
            }
            pieces.append(piece)
            key = " ".join(text.split())
            if len(text) < settings["min_chars"]:
                dropped.append(drop(piece, stage, "too_short", f"{len(text)} < {settings['min_chars']} characters"))
            elif len(text) > settings["max_chars"]:
                dropped.append(drop(piece, stage, "too_long", f"{len(text)} > {settings['max_chars']} characters"))
            elif settings["language"] and (found := language_of(text)) != settings["language"]:
                dropped.append(drop(piece, stage, "language", f"{found}, not {settings['language']}"))
            elif key in seen:
                dropped.append(drop(piece, stage, "duplicate", f"same text as {seen[key]}"))
            else:
                seen[key] = piece["id"]
                kept.append(piece)
    return pieces, kept, dropped


def language_of(text: str) -> str:
    """ISO 639-1 code of the text's language by py3langid, whose model ships in its wheel."""
    import py3langid

    return py3langid.classify(text)[0]


def sample(
    segments: list[Row], lengths: list[int], quantiles: list[float], size: int, random_seed: int
) -> tuple[list[Row], list[Row]]:
    """Draw `size` segments whose token length lies between two quantiles of all lengths.

    The seed document samples LIMA so: 150 completions between the first and the second quartile,
    seed 42. The draw depends on ids and seed alone, not on the order of the rows. Returns
    (kept, dropped) with the reasons `length_quantile` and `not_sampled`.
    """
    import numpy as np

    low, high = np.quantile(lengths, quantiles) if lengths else (0, 0)
    eligible, dropped = [], []
    for row, length in zip(segments, lengths, strict=True):
        if low <= length <= high:
            eligible.append(row)
        else:
            detail = f"{length} tokens, outside {low:g} to {high:g}"
            dropped.append(drop(row, "sample", "length_quantile", detail))
    ordered = sorted(eligible, key=lambda row: row["id"])
    chosen = {row["id"] for row in random.Random(random_seed).sample(ordered, min(size, len(ordered)))}
    dropped += [drop(row, "sample", "not_sampled") for row in eligible if row["id"] not in chosen]
    return [row for row in eligible if row["id"] in chosen], dropped


def split(pairs: list[Row], heldout: float, random_seed: int) -> tuple[list[Row], list[Row]]:
    """Split pairs into train and held-out, by ids and seed alone.

    Raises ValueError when either part would be empty.
    """
    ordered = sorted(pairs, key=lambda row: row["id"])
    random.Random(random_seed).shuffle(ordered)
    count = round(len(pairs) * heldout)
    if count == 0 or count == len(pairs):
        raise ValueError(
            f"seed.heldout: {heldout} of {len(pairs)} pairs leaves {count} to measure on and "
            f"{len(pairs) - count} to train on; both need at least one"
        )
    chosen = {row["id"] for row in ordered[:count]}
    return [r for r in pairs if r["id"] not in chosen], [r for r in pairs if r["id"] in chosen]


def describe(rows: list[Row]) -> dict[str, Any]:
    """Number of rows per source, for the log."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["source"]] = counts.get(row["source"], 0) + 1
    return counts
