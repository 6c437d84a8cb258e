"""Exact and near duplicates among millions of segments, in memory that is 128 bytes a segment and a little.

Texts are compared by the Jaccard index of their word bigrams: with 15 % of the words changed it is still above 0.5.
MinHash signatures of 128 hashes come from rensa, of each hash the lowest byte is kept (b-bit minwise hashing, Li and
König 2010). LSH: 32 bands of 4 bytes; texts alike in a band are candidates, found by sorting the bands one after the
other, and a pair counts when the signatures agree as they do at the threshold. Neither the number of parts nor that
of threads plays a role: the order is that of the corpus, and the first one of several copies is kept.
"""

import hashlib
import itertools
import re
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

HASHES = 128

# Not the marks of symbols, emoji and kana, nor the dot that a Turkish İ leaves in lower case.
_OTHER_MARKS = {0x307, *range(0x20D0, 0x2100), *range(0x3000, 0x3100), *range(0xFE00, 0xFE10)}
MARKS = "".join(chr(code) for code in range(0x300, 0x10000) if code not in _OTHER_MARKS and unicodedata.category(chr(code))[0] == "M")
"""Signs that belong to the letter before them, such as the vowels of Hindi, Thai and pointed Hebrew."""

WORD_MARKS = re.sub("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]", "", MARKS)
"""Those that a word goes on after. Thai, Lao, Burmese and Khmer do not set words apart: cut there, their phrases can be compared in part."""

# A word, or one character where words are not set apart.
_WORD = re.compile(rf"[^\W぀-ヿ㐀-鿿]+(?:[{WORD_MARKS}]+[^\W぀-ヿ㐀-鿿]*)*|[぀-ヿ㐀-鿿]")


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return _WORD.findall(text.lower())


def bigrams(text: str) -> list[str]:
    """What texts are compared by: their pairs of neighbouring words, or the text where there are none."""
    said = words(text)
    return [f"{a} {b}" for a, b in itertools.pairwise(said)] or [text]


def key(text: str) -> int:
    """64 bits that are equal for texts that differ in white space alone."""
    return int.from_bytes(hashlib.blake2b(" ".join(text.split()).encode(), digest_size=8).digest())


def signatures(texts_bigrams: list[list[str]]) -> list[bytes]:
    """The 128-byte signature of each text, given its bigrams."""
    import numpy as np
    from rensa import RMinHash

    matrix = RMinHash.digest_matrix_from_token_sets(texts_bigrams, HASHES, 1)
    return [row.tobytes() for row in np.array(matrix.to_rows(), dtype=np.uint32).astype(np.uint8).reshape(-1, HASHES)]


def exact(keys: "np.ndarray") -> "np.ndarray":
    """For each of the keys, uint64 [n], the place of the first equal one, int64 [n]."""
    import numpy as np

    order = np.argsort(keys, kind="stable")
    starts = np.ones(len(keys), dtype=bool)
    starts[1:] = keys[order][1:] != keys[order][:-1]
    first = np.empty(len(keys), dtype=np.int64)
    first[order] = order[np.flatnonzero(starts)][np.cumsum(starts) - 1]
    return first


def _candidates(signatures: "np.ndarray") -> "Iterator[tuple[np.ndarray, np.ndarray]]":
    """(earlier places, later places) of texts that are alike in a band, for one band after the other.

    Of a group of alike texts each is paired with the first one and with the one before it, so that the number of
    pairs does not grow with the square of the group.
    """
    import numpy as np

    bands = signatures.view(np.uint32)
    for band in range(bands.shape[1]):
        column = np.ascontiguousarray(bands[:, band])
        order = np.argsort(column, kind="stable")
        alike = column[order][1:] == column[order][:-1]
        if not alike.any():
            continue
        starts = np.concatenate([[True], ~alike])
        firsts = order[np.flatnonzero(starts)][np.cumsum(starts) - 1]
        yield order[:-1][alike], order[1:][alike]
        yield firsts[1:][alike], order[1:][alike]


def similarity(signatures: "np.ndarray", left: "np.ndarray", right: "np.ndarray") -> "np.ndarray":
    """Estimated Jaccard index of pairs of signatures, uint8 [n, 128], by their places; standard error up to 0.045."""
    import numpy as np

    found = np.empty(len(left), dtype=np.float32)
    for start in range(0, len(left), 100_000):
        at = slice(start, start + 100_000)
        found[at] = (signatures[left[at]] == signatures[right[at]]).mean(axis=1)
    # Bytes of different hashes agree once in 256 times.
    return (found - 1 / 256) / (1 - 1 / 256)


def near(signatures: "np.ndarray", threshold: float) -> dict[int, tuple[int, float]]:
    """For each text that is nearly the same as an earlier one that is kept: its place -> (the other's place, similarity).

    `signatures`: uint8 [n, 128] in the order of the corpus. A text is compared with kept ones alone, so that a chain
    of small changes does not make far texts one.
    """
    import numpy as np

    n = len(signatures)
    pairs = np.empty(0, dtype=np.int64)
    for left, right in _candidates(signatures):
        found = np.setdiff1d(right.astype(np.int64) * n + left, pairs)
        left, right = found % n, found // n
        pairs = np.union1d(pairs, found[similarity(signatures, left, right) >= threshold])
    dropped: dict[int, tuple[int, float]] = {}
    # In the order of the later text, then of the earlier one.
    for start in range(0, len(pairs), 100_000):
        left, right = pairs[start : start + 100_000] % n, pairs[start : start + 100_000] // n
        alike = similarity(signatures, left, right)
        for earlier, later, how in zip(left.tolist(), right.tolist(), alike.tolist(), strict=True):
            if earlier not in dropped and later not in dropped:
                dropped[later] = (earlier, how)
    return dropped


def near_texts(texts: list[str], threshold: float) -> dict[int, tuple[int, float]]:
    """As `near`, of texts that are all in memory; of their bigrams only a thousand texts' are."""
    import numpy as np

    parts = (texts[start : start + 1000] for start in range(0, len(texts), 1000))
    made = b"".join(signature for part in parts for signature in signatures([bigrams(text) for text in part]))
    return near(np.frombuffer(made, np.uint8).reshape(-1, HASHES), threshold)
