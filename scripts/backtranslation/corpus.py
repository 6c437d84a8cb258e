"""The corpus from source files to the drawn sample: cut part by part, deduplicated as a whole, drawn. Knows no models.

Nothing here holds more than a few thousand texts at a time. What grows with the corpus are arrays of numbers: 128
bytes a segment for near duplicates, some ten bytes else.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from backtranslation import dedup, segments, sources
from backtranslation.decontamination import Protected
from backtranslation.logs import Progress, logger
from backtranslation.readers import Problem
from backtranslation.records import (
    CORPUS,
    DROPPED,
    PIECES,
    SEGMENTS,
    RecordError,
    Row,
    batches,
    blocks,
    count,
    drop,
    read_json,
    settle,
    write_block,
    write_json,
    writer,
)

BLOCK, BLOCK_CHARS = 1000, 5_000_000
"""So many documents, or pieces, are worked on at once; fewer documents where they have so many characters together."""


def cut_part(part: sources.Part, filters: dict[str, Any], protected: Protected, pieces_path: str, dropped_path: str, counts_path: str) -> None:
    """Read, cut and filter one part of the corpus.

    Writes the segments that pass (records.PIECES), the ledger, and the counts per source: `rows` seen, `unread` ones,
    `pieces` cut, and `problem`, what was wrong with the first row that could not be read.
    """
    counts: dict[str, Row] = {}
    with writer(pieces_path, PIECES) as out, writer(dropped_path, DROPPED) as ledger:
        for place, source, files in part:
            seen = counts.setdefault(str(place), {"rows": 0, "unread": 0, "pieces": 0, "problem": None})
            rows = sources.read_corpus(source, files)
            for block in _blocks(rows):
                documents = [{**row, "source_number": place, "settings": source} for row, problem in block if not problem]
                unread = [drop(row, "read", problem.reason, problem.detail) for row, problem in block if problem]
                pieces, kept, dropped = segments.segment(documents, {**filters, **(source.get("filters") or {})})
                clean, contaminated = [], []
                for some in blocks(kept, BLOCK):
                    passed, held = _clean(some, protected)
                    clean += passed
                    contaminated += held
                settle("segment", pieces, clean, [*dropped, *contaminated])
                write_block([*unread, *dropped, *contaminated], DROPPED, ledger)
                write_block(clean, PIECES, out)
                seen["rows"] += len(block)
                seen["unread"] += len(unread)
                seen["pieces"] += len(pieces)
                seen["problem"] = seen["problem"] or next((f"{row['source']}: {row['detail']}" for row in unread), None)
                logger.info("%s: %d rows, %d segments", sources.name_of(source), seen["rows"], seen["pieces"])
    write_json(counts, counts_path)


def _blocks(rows: Iterator[tuple[Row, Problem | None]]) -> Iterator[list[tuple[Row, Problem | None]]]:
    """Consecutive rows, few of them where they are long, so that books take no more memory than pages."""
    block, size = [], 0
    for row, problem in rows:
        block.append((row, problem))
        size += len(row.get("text", ""))
        if len(block) == BLOCK or size >= BLOCK_CHARS:
            yield block
            block, size = [], 0
    if block:
        yield block


def _clean(pieces: list[Row], protected: Protected) -> tuple[list[Row], list[Row]]:
    """(pieces with `key` and `signature`, ledger rows of those that hold a protected text)."""
    grams = [dedup.bigrams(piece["text"]) for piece in pieces]
    found = [protected.match(piece["text"], own) for piece, own in zip(pieces, grams, strict=True)]
    dropped = [
        drop(piece, "segment", "contaminated", f"{match[1]}: {match[0][:200]}", match[0])
        for piece, match in zip(pieces, found, strict=True)
        if match
    ]
    clean = [(piece, own) for piece, own, match in zip(pieces, grams, found, strict=True) if not match]
    signatures = dedup.signatures([own for _, own in clean])
    return [
        {**piece, "key": dedup.key(piece["text"]), "signature": signature} for (piece, _), signature in zip(clean, signatures, strict=True)
    ], dropped


def _column(paths: list[str], name: str) -> np.ndarray:
    """A column of all parts as one array; ids as uint64 [n], signatures as uint8 [n, 128]."""
    total = sum(map(count, paths))
    found = np.empty((total, dedup.HASHES) if name == "signature" else total, np.uint8 if name == "signature" else np.uint64)
    at = 0
    for path in paths:
        for batch in batches(path, [name]):
            values = batch.column(0)
            span = slice(at, at + len(values))
            if name == "id":
                found[span] = [int(value, 16) for value in values.to_pylist()]
            elif name == "signature":
                # Without nulls the bytes lie one row after the other.
                data = np.frombuffer(values.buffers()[1], dtype=np.uint8).reshape(-1, dedup.HASHES)
                found[span] = data[values.offset : values.offset + len(values)]
            else:
                found[span] = values.to_numpy(zero_copy_only=False)
            at += len(values)
    return found


def merge(
    parts: list[str], ledgers: list[str], counts: list[str], names: list[str], near: float | None,
    segments_path: str, dropped_path: str, counts_path: str,
) -> None:
    """Deduplicate all parts and write what is left (records.CORPUS), the whole ledger, and the counts.

    The first one of several copies in the order of the corpus is kept. Reasons: `duplicate`, `near_duplicate`.

    Raises SourceError when not one row of a source could be read, or a row was read twice; ValueError when no segment
    is left; RecordError when the parts do not add up.
    """
    total = _total(counts, names)
    ids = _column(parts, "id")
    unique, first_of_id = np.unique(ids, return_index=True)
    if len(unique) < len(ids):
        twice = int(np.setdiff1d(np.arange(len(ids)), first_of_id)[0])
        name = next(itertools.islice((row["source"] for path in parts for batch in batches(path, ["source"]) for row in batch.to_pylist()), twice, None))
        raise sources.SourceError(f"corpus.sources: {name} is read twice; name it in one source")
    cut_dropped = sum(map(count, ledgers)) - total["unread"]
    if total["pieces"] != len(ids) + cut_dropped:
        raise RecordError(f"segment: {total['pieces']} segments were cut, {len(ids)} kept and {cut_dropped} dropped; each must end in exactly one place")
    if not len(ids):
        reasons = sorted({reason for path in ledgers for batch in batches(path, ["reason"]) for reason in batch.column(0).to_pylist()})
        raise ValueError(f"corpus.sources: none of {total['pieces']} segments is left; the reasons are in the ledger: {', '.join(reasons)}")
    dropped = _duplicates(parts, near)
    logger.info("%d segments, %d of them duplicates", len(ids), len(dropped))
    at = 0
    with writer(segments_path, CORPUS) as out, writer(dropped_path, DROPPED) as ledger:
        for path in ledgers:
            for batch in batches(path):
                ledger.write_batch(batch)
        for path in parts:
            for batch in batches(path, CORPUS.names):
                gone = [(place, dropped[at + place]) for place in range(len(batch)) if at + place in dropped]
                rows = batch.take(pa.array([place for place, _ in gone], pa.int64())).to_pylist()
                details = [(reason, f"{note} {ids[other]:016x}") for _, (other, reason, note) in gone]
                write_block([drop(row, "deduplicate", *detail) for row, detail in zip(rows, details, strict=True)], DROPPED, ledger)
                keep = np.ones(len(batch), dtype=bool)
                keep[[place for place, _ in gone]] = False
                if keep.any():
                    out.write_batch(batch.filter(pa.array(keep)))
                at += len(batch)
    write_json({**total, "segments": len(ids), "duplicates": len(dropped)}, counts_path)


def _total(counts: list[str], names: list[str]) -> dict[str, int]:
    """The counts of all parts together."""
    total = {"rows": 0, "unread": 0, "pieces": 0}
    per_source: dict[int, list[Row]] = {}
    for path in counts:
        for place, seen in read_json(path).items():
            per_source.setdefault(int(place), []).append(seen)
            for kind in total:
                total[kind] += seen[kind]
    for place, name in enumerate(names):
        of_source = per_source.get(place, [])
        if sum(seen["rows"] for seen in of_source) == 0:
            raise sources.SourceError(f"{name}: holds no rows")
        if all(seen["rows"] == seen["unread"] for seen in of_source):
            problem = next(seen["problem"] for seen in of_source if seen["problem"])
            raise sources.SourceError(f"{name}: no row could be read; {problem}")
    return total


def _duplicates(parts: list[str], near: float | None) -> dict[int, tuple[int, str, str]]:
    """Place of each duplicate in the corpus -> (place of the copy that is kept, reason, note)."""
    first = dedup.exact(_column(parts, "key"))
    dropped = {place: (int(first[place]), "duplicate", "same text as") for place in np.flatnonzero(first != np.arange(len(first))).tolist()}
    if near is not None:
        # Exact copies are out of it, and every place is one among those that are left.
        left = np.flatnonzero(first == np.arange(len(first)))
        for place, (other, how) in dedup.near(_signatures(parts, left), near).items():
            dropped[int(left[place])] = (int(left[other]), "near_duplicate", f"{how:.0%} alike with")
    return dropped


def _signatures(parts: list[str], left: np.ndarray) -> np.ndarray:
    """Signatures of the places `left`, in order, uint8 [n, 128]."""
    found = _column(parts, "signature")
    # Moved up in place, since a copy would take as much memory again.
    for start in range(0, len(left), 100_000):
        at = left[start : start + 100_000]
        found[start : start + len(at)] = found[at]
    return found[: len(left)]


def sample(
    segments_path: str, size: int | float, random_seed: int, weights: list[float | None], stratify: bool,
    token_counts: Callable[[list[str]], list[int]] | None, tokens: list[int] | None, quantiles: list[float] | None,
    sample_path: str, dropped_path: str,
) -> int:
    """Draw segments, all alike or stratum by stratum, and return their number.

    `size`: how many, or a share as a float. `token_counts` gives the lengths of texts where `tokens` (at least, at
    most) or `quantiles` of all lengths limit them; the seed document samples LIMA so: 150 completions between the
    first and the second quartile, seed 42. The draw depends on ids and seed alone. Reasons: `length_tokens`,
    `length_quantile`, `not_sampled`.

    Raises ValueError when no segment is left.
    """
    ids, places, strata, lengths = _drawable(segments_path, token_counts)
    low, high = np.quantile(lengths, quantiles) if quantiles and len(lengths) else (-np.inf, np.inf)
    least, most = tokens or (-np.inf, np.inf)
    fits = (lengths >= least) & (lengths <= most)
    between = (lengths >= low) & (lengths <= high)
    eligible = np.flatnonzero(fits & between)
    if not len(eligible):
        raise ValueError(f"corpus.sample: no segment is left of {len(ids)}; widen corpus.token_quantiles or corpus.tokens")
    wanted = sample_size(size, len(eligible))
    if not wanted:
        raise ValueError(f"corpus.sample: {size:g} of {len(eligible)} segments is none; raise it")
    chosen = np.zeros(len(ids), dtype=bool)
    for members, share in _shares(places[eligible], strata[eligible], weights, stratify, wanted):
        chosen[eligible[members][np.argsort(_lots(ids[eligible[members]], random_seed))[:share]]] = True
    at = 0
    with writer(sample_path, SEGMENTS) as out, writer(dropped_path, DROPPED) as ledger:
        for batch in batches(segments_path, SEGMENTS.names):
            span = slice(at, at + len(batch))
            if chosen[span].any():
                out.write_batch(batch.filter(pa.array(chosen[span])))
            rest = batch.filter(pa.array(~chosen[span])).to_pylist()
            places_left = (np.flatnonzero(~chosen[span]) + at).tolist()
            dropped = []
            for row, place in zip(rest, places_left, strict=True):
                if not fits[place]:
                    reason, detail = "length_tokens", f"{lengths[place]:g} tokens, outside {least:g} to {most:g}"
                elif not between[place]:
                    reason, detail = "length_quantile", f"{lengths[place]:g} tokens, outside {low:g} to {high:g}"
                else:
                    reason, detail = "not_sampled", ""
                dropped.append(drop(row, "sample", reason, detail))
            write_block(dropped, DROPPED, ledger)
            at += len(batch)
    if at != len(ids):
        raise RecordError(f"sample: {len(ids)} segments came in, {at} went out; each must end in exactly one place")
    return int(chosen.sum())


def sample_size(size: float, available: int) -> int:
    """How many of `available` segments `corpus.sample` asks for: a share of them where it is a float of at most 1, else at most that number."""
    return round(size * available) if isinstance(size, float) and size <= 1 else min(int(size), available)


def _drawable(path: str, token_counts: Callable[[list[str]], list[int]] | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(ids, places of their sources, strata as numbers, lengths in tokens or 0) of all segments."""
    names: dict[str, int] = {}
    strata, lengths = np.zeros(count(path), np.int64), np.zeros(count(path), np.int64)
    at = 0
    progress = Progress("counting tokens", len(strata))
    for batch in batches(path, ["stratum", "text"] if token_counts else ["stratum"]):
        span = slice(at, at + len(batch))
        strata[span] = [names.setdefault(value or "", len(names)) for value in batch.column("stratum").to_pylist()]
        if token_counts:
            lengths[span] = token_counts(batch.column("text").to_pylist())
            progress.add(len(batch))
        at += len(batch)
    # In the order of the names, which does not depend on where they first came.
    order = np.argsort(np.argsort(np.array(list(names), dtype=object))) if names else np.zeros(0, np.int64)
    return _column([path], "id"), _column([path], "source_number"), order[strata] if len(strata) else strata, lengths


def _shares(
    places: np.ndarray, strata: np.ndarray, weights: list[float | None], stratify: bool, size: int
) -> Iterator[tuple[np.ndarray, int]]:
    """(members, how many of them) of what is drawn from apart: sources where they have weights, and within each its strata."""
    weighted = any(weight is not None for weight in weights)
    sources_apart = [np.flatnonzero(places == place) for place in np.unique(places)] if weighted else [np.arange(len(places))]
    heavy = [(weights[places[members[0]]] or 0.0 if weighted else 1.0, len(members)) for members in sources_apart]
    for inside, share in zip(sources_apart, allocate(heavy, size), strict=True):
        # Strata share what their source has, so that one with few rows takes nothing from the source's weight.
        groups = [inside[strata[inside] == stratum] for stratum in np.unique(strata[inside])] if stratify else [inside]
        yield from zip(groups, allocate([(1.0, len(members)) for members in groups], share), strict=True)


def _lots(ids: np.ndarray, random_seed: int) -> np.ndarray:
    """A random number for each id, uint64 [n], by id and seed alone (splitmix64), so that a segment more or less leaves the others' lots."""
    with np.errstate(over="ignore"):
        mixed = ids + np.uint64(random_seed + 1) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def allocate(groups: list[tuple[float, int]], size: int) -> list[int]:
    """How many to draw from each of the (weight, members) groups: by weight as far as they go, the rest by the others."""
    shares = [0] * len(groups)
    while (left := size - sum(shares)) > 0:
        open_groups = [place for place, (weight, members) in enumerate(groups) if weight > 0 and shares[place] < members]
        if not open_groups:
            break
        together = sum(groups[place][0] for place in open_groups)
        before = sum(shares)
        for place in open_groups:
            weight, members = groups[place]
            shares[place] = min(members, shares[place] + int(left * weight / together))
        if sum(shares) == before:
            # Less than one for each: the heaviest first, the earlier one of equals.
            for place in sorted(open_groups, key=lambda place: -groups[place][0])[:left]:
                shares[place] += 1
    return shares
