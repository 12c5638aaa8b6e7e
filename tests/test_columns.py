"""Columns are the rows, in less memory; what can't be laid flat comes back as it went in."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from ft_course.data.columns import (Features, add_column, as_features, join, lengths_of, narrow, open_features, pack,
                                    save_features, take)

many = settings(max_examples=50, deadline=None, derandomize=True)
numbers = st.integers(-(2**31), 2**31)
row_of = {
    "numbers": numbers, "small": st.integers(0, 255), "floats": st.floats(allow_nan=False), "texts": st.text(max_size=5), "truths": st.booleans(), "nothing": st.none(),
    "lists": st.lists(numbers, max_size=5), "words": st.lists(st.none() | st.integers(0, 9), max_size=5), "holes": st.lists(st.none() | st.integers(-3, 3), max_size=3),
    "float lists": st.lists(st.floats(allow_nan=False), max_size=4), "tags": st.lists(st.text(max_size=3), max_size=3), "mixed": st.lists(st.integers(-100, -100) | st.text(max_size=3), max_size=3),
    "nested": st.lists(st.lists(st.integers(0, 9), max_size=2), max_size=2), "huge": st.integers(2**62, 2**70), "anything": st.none() | st.integers(0, 5) | st.lists(st.integers(0, 5), max_size=2) | st.text(max_size=2),
}


@pytest.mark.parametrize("kind", row_of)
def test_rows_come_back_as_they_went_in(kind):
    @many
    @given(st.lists(row_of[kind], max_size=6))
    def check(rows):
        column = pack(rows)
        assert len(column) == len(rows) and [column.row(i) for i in range(len(rows))] == rows

    check()


@pytest.mark.parametrize("kind", row_of)
def test_blocks_and_choices_are_those_of_rows(kind):
    @many
    @given(st.lists(st.lists(row_of[kind], min_size=1, max_size=3), min_size=1, max_size=3), st.randoms(use_true_random=False))
    def check(blocks, rng):
        rows = [{"x": row} for block in blocks for row in block]
        whole = join([as_features([{"x": row} for row in block]) for block in blocks])
        assert list(whole) == rows == whole
        chosen = [rng.randrange(len(rows)) for _ in range(4)]
        assert list(take(whole, chosen)) == [rows[i] for i in chosen] == take(rows, chosen)
        assert list(take(whole, [])) == []

    check()


def test_a_real_minus_one_beside_none_stays_one():
    rows = [[None, 3], [-1, 2]]
    assert [column.values.dtype.kind for column in map(pack, ([row] for row in rows))] == ["i", "i"], "each alone is laid flat"
    whole = join([as_features([{"x": row}]) for row in rows])
    assert [row["x"] for row in whole] == rows


@pytest.mark.parametrize("kind", ["numbers", "small", "floats", "texts", "lists", "words", "float lists", "tags", "nested"])
def test_a_file_gives_the_rows_back(tmp_path, kind):
    @settings(max_examples=30, deadline=None, derandomize=True)
    @given(st.lists(row_of[kind], min_size=1, max_size=5))
    def check(rows):
        save_features([{"x": row, "input_ids": [1]} for row in rows], tmp_path / "rows.arrow")
        assert [row["x"] for row in open_features(tmp_path / "rows.arrow")] == rows

    check()


def test_a_mapped_file_is_not_copied(tmp_path):
    save_features([{"input_ids": list(range(500))} for _ in range(200)], tmp_path / "rows.arrow")
    mapped = open_features(tmp_path / "rows.arrow")
    assert not mapped.columns["input_ids"].values.flags.owndata and lengths_of(mapped).tolist() == [500] * 200
    assert take(mapped, [7, 3])[1]["input_ids"] == list(range(500))


def test_they_are_like_a_list():
    rows = [{"input_ids": [1, 2], "labels": 0}, {"input_ids": [3], "labels": 1}, {"input_ids": [], "labels": 0}]
    features = as_features(rows)
    assert features[-1] == rows[-1] and features[np.int64(1)] == rows[1] and features[1:] == rows[1:] and features[::-1] == rows[::-1]
    assert list(features) == rows and rows[1] in features and features == rows and features != rows[:2]
    with pytest.raises(IndexError):
        features[3]
    assert lengths_of(features).tolist() == lengths_of(rows).tolist() == [2, 1, 0] and lengths_of([]).tolist() == []
    assert as_features(features) is features and not Features({}) and list(Features({})) == []


def test_one_more_key():
    rows = [{"input_ids": [1]}, {"input_ids": [2]}]
    assert list(add_column(rows, "tags", [["O"], ["B-X"]])) == [{"input_ids": [1], "tags": ["O"]}, {"input_ids": [2], "tags": ["B-X"]}]
    with pytest.raises(ValueError, match="columns of different length"):
        add_column(rows, "labels", [1])


@pytest.mark.parametrize("values, dtype", [([0, 255], "uint8"), ([0, 256], "uint16"), ([-1, 5], "int8"), ([-100, 30000], "int16"), ([-100, 65535], "int32"), ([0, 70000], "uint32"), ([-1, 2**40], "int64"), ([], "uint8")])
def test_as_few_bytes_as_hold_them(values, dtype):
    assert narrow(np.array(values)).dtype == dtype and narrow(np.array(values)).tolist() == values


def test_a_long_text_does_not_widen_the_others():
    column = pack(["a" * 10**6, *["b"] * 1000])
    assert column.values[0] == "a" * 10**6 and isinstance(column.values, list)


def test_memory_is_a_tenth_of_lists():
    features = as_features([{"input_ids": [1000 + i % 20000] * 64, "attention_mask": [1] * 64, "token_type_ids": [0] * 64} for i in range(2000)])
    assert features.nbytes / len(features) < 300


def test_a_loader_gets_columns():
    features = as_features([{"input_ids": [i] * (1 + i)} for i in range(6)])
    kinds = [type(batch) for batch in DataLoader(features, batch_sampler=[[0, 5], [3]], collate_fn=lambda batch: batch)]
    assert kinds == [Features, Features]
