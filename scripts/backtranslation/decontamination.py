"""What a model will be measured on must not be in what it is trained on: word n-gram overlap, shown as text.

A text is flagged when it shares `n` consecutive words with a protected text, or holds a shorter protected text of at
least five words whole; a still shorter one must be all of it. Flags are often wrong (quotations, licences, idioms), so the
ledger shows what matched.
"""

from collections.abc import Iterable

from backtranslation import readers, sources
from backtranslation.dedup import bigrams, words
from backtranslation.records import Row, drop

MIN_WORDS = 5
"""Shorter protected texts are only found where they are the whole text."""


class Protected:
    """Texts to look out for, each with the name under which the ledger shows it."""

    def __init__(self, texts: Iterable[tuple[str, str]], n: int):
        self.n = n
        self.whole: dict[str, str] = {}
        self.runs: dict[str, str] = {}
        # The first two words of each run, and the lengths that follow: one look-up rules most places out.
        self.starts: dict[str, set[int]] = {}
        for name, text in texts:
            said = words(text)
            self.whole.setdefault(" ".join(said), name)
            size = min(n, len(said))
            if size < MIN_WORDS:
                continue
            for at in range(len(said) - size + 1):
                self.runs.setdefault(" ".join(said[at : at + size]), name)
                self.starts.setdefault(f"{said[at]} {said[at + 1]}", set()).add(size)

    def match(self, text: str, grams: list[str]) -> tuple[str, str] | None:
        """(the words in common, name of the protected text) for a text and `grams`, its bigrams, or None.

        The run is the first one found, as long as it goes on.
        """
        places = [at for at, gram in enumerate(grams) if gram in self.starts]
        if not places and len(grams) >= MIN_WORDS:
            return None
        said = words(text)
        if said and (name := self.whole.get(" ".join(said))):
            return " ".join(said), name
        for at in places:
            for size in sorted(self.starts[grams[at]], reverse=True):
                if name := self.runs.get(" ".join(said[at : at + size])):
                    end = at + size
                    while end < len(said) and " ".join(said[end - size + 1 : end + 1]) in self.runs:
                        end += 1
                    return " ".join(said[at:end]), name
        return None


def protect(prompts: list[Row], pairs: list[Row], n: int) -> Protected:
    """The texts of evaluation prompts (sources as in the configuration) and both sides of held-out pairs.

    Raises SourceError naming file and row of a prompt that cannot be read.
    """
    texts = []
    for source in prompts:
        for name, number, text in sources.texts(source, sources.PROMPT_ROLES):
            if isinstance(text, readers.Problem):
                raise sources.SourceError(f"{name}: row {number}: {text.detail}")
            texts += [(f"{name}, row {number}", said) for said in (text.instruction, text.response) if said]
    for row in pairs:
        texts += [(f"held-out pair {row['id']}", row[side]) for side in ("instruction", "response")]
    return Protected(texts, n)


def screen(pairs: list[Row], protected: Protected) -> tuple[list[Row], list[Row]]:
    """(kept, dropped) seed pairs: those whose instruction overlaps with a protected text are dropped as `contaminated`."""
    kept, dropped = [], []
    for row in pairs:
        if found := protected.match(row["instruction"], bigrams(row["instruction"])):
            dropped.append(drop(row, "ingest", "contaminated", f"{found[1]}: {found[0][:200]}"))
        else:
            kept.append(row)
    return kept, dropped
