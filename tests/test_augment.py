"""Every segment gets one candidate; a stopped job loses nothing; nothing is cut."""

from conftest import segment

from backtranslation.augment import write_instructions
from backtranslation.engines import Sampling, TransformersEngine
from backtranslation.records import WorkFile

PROMPT = "{response}\n\nWrite the instruction."
SEGMENTS = [segment(n, "The text explains the iterator. " * n) for n in range(1, 7)]


def write(tiny, template, folder, segments=SEGMENTS, limit=None, seed=42, count=1):
    def engine():
        loaded = TransformersEngine(tiny, template.stop_id, dtype="float32", batch_tokens=300)
        if limit is not None:
            original = loaded.generate

            def some(*arguments):
                for count, found in enumerate(original(*arguments)):
                    if count == limit:
                        raise KeyboardInterrupt
                    yield found

            loaded.generate = some
        return loaded

    return write_instructions(segments, engine, template, PROMPT, Sampling(8, 1.0, 0.9), seed, WorkFile(folder, "x"), count)


def test_a_stopped_job_goes_on_and_writes_the_same(tiny, template, tmp_path):
    import pytest

    whole = write(tiny, template, tmp_path / "a")
    assert [row["id"] for row in whole] == [row["id"] for row in SEGMENTS]
    with pytest.raises(KeyboardInterrupt):
        write(tiny, template, tmp_path / "b", limit=3)
    assert len(WorkFile(tmp_path / "b", "x").done) == 3
    again = write(tiny, template, tmp_path / "b")
    assert [row["instruction"] for row in again] == [row["instruction"] for row in whole]


def test_a_row_is_written_alike_in_other_company(tiny, template, tmp_path):
    whole = write(tiny, template, tmp_path / "a")
    few = write(tiny, template, tmp_path / "b", segments=SEGMENTS[::2])
    assert [row["instruction"] for row in few] == [row["instruction"] for row in whole[::2]]
    other = write(tiny, template, tmp_path / "c", seed=43)
    assert [row["instruction"] for row in other] != [row["instruction"] for row in whole]


def test_text_over_the_context_is_not_cut(tiny, template, tmp_path):
    rows = write(tiny, template, tmp_path, segments=[SEGMENTS[0], segment(9, "long " * 3000)])
    assert [row["finish_reason"] == "over_context" for row in rows] == [False, True]
    assert rows[1]["instruction"] == ""


def test_several_candidates_of_a_segment_differ_and_name_it(tiny, template, tmp_path):
    one = write(tiny, template, tmp_path / "a")
    three = write(tiny, template, tmp_path / "b", count=3)
    assert len({row["id"] for row in three}) == 3 * len(SEGMENTS)
    assert [row["segment"] for row in three] == [row["id"] for row in SEGMENTS for _ in range(3)]
    # The first is the one that is written when there is only one.
    assert [row["instruction"] for row in three[::3]] == [row["instruction"] for row in one]
    assert any(len({row["instruction"] for row in three[n : n + 3]}) == 3 for n in range(0, 18, 3))
