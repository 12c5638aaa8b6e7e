"""Padded batches that change nothing, and an order that wastes little."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertForTokenClassification
from transformers.trainer_pt_utils import get_length_grouped_indices

from ft_course.data.alignment import IGNORE
from ft_course.data.batching import LengthBucketSampler, collate, pad, padding_share
from ft_course.data.columns import as_features, take

LENGTHS = np.clip(np.random.default_rng(0).lognormal(3.2, .5, 3000), 4, 128).astype(int)  # like the sentences of tweets and news
many = settings(max_examples=200, deadline=None, derandomize=True)


def feature(ids, **more):
    return {"input_ids": ids, "attention_mask": [1] * len(ids), **more}


def test_token_labels_are_padded_with_ignore():
    batch = collate([feature([5, 6, 7], labels=[1, 2, 3], word_ids=[None, 0, None], n_words=1), feature([8], labels=[4])], pad_token_id=9)
    assert list(batch) == ["input_ids", "attention_mask", "labels"]
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[1, 2, 3], [4, IGNORE, IGNORE]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


@pytest.mark.parametrize("labels, dtype", [([1, 0], torch.int64), ([.5, -1.], torch.float32), (np.array([1, 0]), torch.int64)])
def test_one_label_for_each_text(labels, dtype):
    batch = collate([feature([1, 2], labels=labels[0]), feature([3], labels=labels[1])], 0)
    assert batch["labels"].tolist() == list(labels) and batch["labels"].dtype == dtype and batch["labels"].shape == (2,)


def test_token_type_ids_where_there_are_some_and_no_labels():
    batch = collate([feature([1, 2], token_type_ids=[0, 1]), feature([3], token_type_ids=[1])], 0)
    assert batch["token_type_ids"].tolist() == [[0, 1], [1, 0]] and "labels" not in batch


def test_a_real_token_may_have_the_id_of_the_padding():
    batch = collate([feature([4, 0, 4]), feature([4])], pad_token_id=0)
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize("labels, dtype, shape", [
    ([[0.9, 0.1, 0.5], [0.0, 1.0, 0.0]], torch.float32, (2, 3)),  # soft labels, or several at once
    ([[1.0, 0.0], [0, 1]], torch.float32, (2, 2)),
    ([1, 2.5], torch.float32, (2,)),
    ([True, False], torch.int64, (2,)),
    ([np.float32(0.5), np.float32(2)], torch.float32, (2,)),
    ([np.array([1, 0, 1]), np.array([0, 0, 1])], torch.int64, (2, 3)),
])
def test_labels_keep_what_they_say(labels, dtype, shape):
    batch = collate([feature([1, 2], labels=labels[0]), feature([3, 4], labels=labels[1])])
    assert batch["labels"].dtype == dtype and batch["labels"].shape == shape
    torch.testing.assert_close(batch["labels"].double(), torch.tensor(np.array(labels, dtype=float)), atol=1e-7, rtol=0)


def test_inputs_of_other_models_are_padded():
    rows = [feature([1, 2, 3], position_ids=[5, 6, 7], decoder_input_ids=[4]), feature([8], position_ids=[9], decoder_input_ids=[4, 5])]
    batch = collate(rows, pad_token_id=77)
    assert batch["position_ids"].tolist() == [[5, 6, 7], [9, 0, 0]] and batch["decoder_input_ids"].tolist() == [[4, 77], [4, 5]]


@pytest.mark.parametrize("rows, pad_token_id, words", [
    ([feature([1], pixel_values=[0.5])], 0, "how to batch pixel_values: inputs are input_ids"),
    ([feature([1]), feature([2, 3])], None, "`input_ids` has rows of different length: say what fills them, pad_token_id="),
    ([feature([1], decoder_input_ids=[1]), feature([1], decoder_input_ids=[1, 2])], None, "`decoder_input_ids` has rows"),
    ([feature([1], labels=0), feature([2])], 0, "feature 1 has input_ids, attention_mask, but the first has input_ids, attention_mask, labels"),
    ([feature([1]), feature([2], labels=0)], 0, "feature 1 has"),
    ([feature([1], labels="pos"), feature([2], labels="neg")], 0, "`labels` holds 'pos'"),
    ([feature([1], labels=None), feature([2], labels=1)], 0, "`labels` holds None"),
    ([feature([1], labels=[[1, 0]]), feature([2], labels=[[0, 1]])], 0, "`labels` holds"),
    ([feature(["a", "b"])], 0, "`input_ids` holds"),
])
def test_what_cannot_be_batched_is_refused(rows, pad_token_id, words):
    for features in (rows, [dict(row) for row in rows]):
        with pytest.raises(ValueError, match=words.replace("[", r"\[")) as error:
            collate(features, pad_token_id)
        assert "\n" not in str(error.value)


def test_rows_of_one_length_need_no_filling():
    assert collate([feature([1, 2]), feature([3, 4])])["input_ids"].tolist() == [[1, 2], [3, 4]]


def test_columns_and_dicts_give_one_batch():
    rng = np.random.default_rng(0)
    rows = [feature(rng.integers(0, 70000, n).tolist(), labels=rng.integers(-100, 9, n).tolist(), word_ids=[None] * n, n_words=2) for n in (3, 1, 7, 7)]
    columns = as_features(rows)
    for indices in ([0, 1, 2, 3], [2], [3, 0, 3]):
        one, two = collate(take(columns, indices), 5), collate([rows[i] for i in indices], 5)
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) and one[name].dtype == two[name].dtype for name in one)


@many
@given(st.lists(st.lists(st.integers(-5, 99), min_size=1, max_size=9), min_size=1, max_size=9))
def test_pad_keeps_every_value(rows):
    matrix = pad(rows, 77)
    assert matrix.shape == (len(rows), max(map(len, rows)))
    for row, padded in zip(rows, matrix.tolist()):
        assert padded == row + [77] * (matrix.shape[1] - len(row))


def test_padding_changes_no_logit():
    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_labels=3)
    model = BertForTokenClassification(config).eval()
    features = [feature(torch.randint(1, 50, (n,)).tolist(), labels=[1] * n) for n in (3, 11, 6)]
    with torch.no_grad():
        batch = collate(features, pad_token_id=7)
        together = model(**batch)
        alone = [model(**collate([f])) for f in features]
    for row, one, f in zip(together.logits, alone, features):
        torch.testing.assert_close(row[: len(f["input_ids"])], one.logits[0], atol=1e-5, rtol=0)
    losses = sum(one.loss * len(f["labels"]) for one, f in zip(alone, features)) / 20
    torch.testing.assert_close(together.loss, losses)


@many
@given(lengths=st.lists(st.integers(1, 128), max_size=200), batch_size=st.integers(1, 17), pool=st.integers(1, 12),
       epoch=st.integers(0, 5), shuffle=st.booleans())
def test_every_epoch_is_a_permutation(lengths, batch_size, pool, epoch, shuffle):
    sampler = LengthBucketSampler(lengths, batch_size, seed=3, shuffle=shuffle, pool=pool)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert len(batches) == len(sampler)
    sizes = sorted(map(len, batches))
    assert sizes[1:] == [batch_size] * (len(sizes) - 1)  # one batch, the partial one, may be smaller
    if batches:
        assert max(lengths[i] for i in batches[0]) == max(lengths)


def test_an_epoch_is_a_function_of_seed_and_epoch():
    def epoch(seed, number):
        sampler = LengthBucketSampler(LENGTHS, 16, seed=seed)
        sampler.set_epoch(number)
        return list(sampler)

    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    first = epoch(0, 0)
    np.random.rand(3), torch.rand(3)
    assert epoch(0, 0) == first
    assert len({str(epoch(seed, number)) for seed in range(3) for number in range(3)}) == 9
    sampler = LengthBucketSampler(LENGTHS, 16)
    assert list(sampler) == list(sampler) == first  # nothing is used up by iterating
    np.random.set_state(("MT19937", numpy_state, 624)), torch.set_rng_state(torch_state)
    list(sampler)
    assert (np.random.get_state()[1] == numpy_state).all() and torch.equal(torch.get_rng_state(), torch_state)


def test_evaluation_order_is_sorted_and_covers_the_same():
    sorted_batches, shuffled = list(LengthBucketSampler(LENGTHS, 16, shuffle=False)), list(LengthBucketSampler(LENGTHS, 16))
    order = [LENGTHS[i] for batch in sorted_batches for i in batch]
    assert order == sorted(order, reverse=True)
    assert {i for batch in sorted_batches for i in batch} == {i for batch in shuffled for i in batch}


def test_batches_are_shuffled():
    "Lengths of neighbouring batches are unrelated, or the model would see all short sentences first."
    longest = [max(LENGTHS[i] for i in batch) for batch in LengthBucketSampler(LENGTHS, 16)]
    assert abs(np.corrcoef(longest[1:-1], longest[2:])[0, 1]) < .25


def test_padding_is_far_below_that_of_random_batches():
    order = np.random.default_rng(1).permutation(3000)
    random = [order[i : i + 16] for i in range(0, 3000, 16)]
    assert padding_share(LENGTHS, random) > 10 * padding_share(LENGTHS, list(LengthBucketSampler(LENGTHS, 16)))


@pytest.mark.parametrize("n, batch_size", [(100, 8), (700, 16), (3000, 16), (3000, 32)])
def test_padding_is_no_more_than_with_trainer_s_grouping(n, batch_size):
    ours, theirs = [], []
    for epoch in range(5):
        sampler = LengthBucketSampler(LENGTHS[:n], batch_size)
        sampler.set_epoch(epoch)
        ours.append(padding_share(LENGTHS[:n], list(sampler)))
        order = get_length_grouped_indices(LENGTHS[:n].tolist(), batch_size, generator=torch.Generator().manual_seed(epoch))
        theirs.append(padding_share(LENGTHS[:n], [order[i : i + batch_size] for i in range(0, n, batch_size)]))
    assert np.mean(ours) < np.mean(theirs)


def test_padding_share_by_hand():
    assert padding_share([1, 3, 2], [[0, 1], [2]]) == pytest.approx(2 / 8)
