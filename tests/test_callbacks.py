"""What happens round the loop: stopping in time, writing down, giving way to ^C."""
import csv
import json
import math
import os
import signal
import sys
import warnings
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from tqdm import tqdm
from tiny import tiny_features, tiny_model

matplotlib.use("Agg")
from ft_course.model.parameters import weights
from ft_course.training.callbacks import (CSVLogger, EarlyStopping, Interruptible, KeepBest, LiveCurve, ProgressBar, TensorBoard,
                                          copied, epochs_since_best, smooth)
from ft_course.training.learner import Callback, CancelFit, Learner
from ft_course.training.resuming import load_state_of, state_of
from ft_course.training.updates import TrainingConfig

torch.set_num_threads(1)


class Scripted(Callback):
    "Replace the validation loss of each epoch by one from a list; keep the weights of each epoch."

    def __init__(self, values, column="valid_loss"):
        self.values, self.column, self.weights = values, column, []

    def after_epoch(self):
        row = self.learner.history[-1]
        row[self.column] = self.values[row["epoch"] - 1]
        self.weights.append({k: v.clone() for k, v in weights(self.learner.model).items()})


def run(callbacks, epochs=6, features=8, seed=0, go=True):
    config = TrainingConfig(epochs=epochs, batch_size=4, lr=1e-3)
    learner = Learner(tiny_model(seed=seed), tiny_features(features), tiny_features(4, seed=1), config, callbacks=callbacks)
    return learner.fit() if go else learner


def same(model, kept):
    return all(torch.equal(w, kept[name]) for name, w in weights(model).items())


@pytest.mark.parametrize("values, patience, column, ends, best", [
    ([3, 2, 1, 2, 3, 0], 2, "valid_loss", 5, 3),
    ([3, 2, 2, 2, 1, 0], 2, "valid_loss", 4, 2),  # an equal value is no progress
    ([3, 2, 2, 1, 2, 1], 3, "valid_loss", 6, 4),  # the epochs run out
    ([.1, .5, .4, .3, .9, 1], 2, "valid_f1", 4, 2),  # higher is better
    ([.1, .5, .4, .6, .5, .7], 2, "valid_f1", 6, 6),
])
def test_early_stopping_restores_the_best(values, patience, column, ends, best):
    script = Scripted(values, column)
    learner = run([script, EarlyStopping(patience, column)])
    assert learner.epoch == len(learner.history) == ends and learner.finished
    assert same(learner.model, script.weights[best - 1])
    assert ends == best or not same(learner.model, script.weights[ends - 1])


def test_direction_can_be_told():
    script = Scripted([1, 2, 3, 4, 5, 6], "valid_regret")
    learner = run([script, EarlyStopping(1, "valid_regret", higher_is_better=False)])
    assert learner.epoch == 2 and same(learner.model, script.weights[0])


@pytest.mark.parametrize("monitor, rises", [("valid_loss", False), ("valid_perplexity", False), ("valid_hamming_loss", False), ("valid_mse", False), ("train_loss", False),
                                            ("valid_error", False), ("valid_f1", True), ("valid_macro_f1", True), ("valid_accuracy", True), ("valid_pearson", True), ("valid_r2", True)])
def test_direction_follows_from_the_name(monitor, rises):
    assert KeepBest(monitor).higher == rises and KeepBest(monitor, higher_is_better=not rises).higher != rises


@pytest.mark.parametrize("monitor", ["valid_regret", "valid_cost", "loss_of_what", "steps"])
def test_a_name_that_says_no_direction(monitor):
    with pytest.raises(ValueError, match=f"monitor='{monitor}': should it rise or fall"):
        EarlyStopping(monitor=monitor)


@pytest.mark.parametrize("values, higher, since", [([math.nan, 2, 3], False, 1), ([math.nan, 2, 3], True, 0), ([1, math.nan], False, 1), ([math.nan], False, 1),
                                                   ([math.nan, math.nan], True, 2), ([math.nan, math.inf, 5], False, 0), ([2, math.nan, 2], True, 2)])
def test_a_nan_is_never_the_best(values, higher, since):
    assert epochs_since_best([dict(x=v) for v in values], "x", higher) == since


def test_a_nan_epoch_is_not_kept():
    script, keep = Scripted([math.nan, 2, 3, 4, 5, 6]), KeepBest()
    learner = run([script, keep])
    assert same(learner.model, script.weights[1])


def test_copies_lie_in_the_processors_memory_and_leave_out_what_does_not_train():
    assert all(t.device.type == "cpu" and t.data_ptr() != w.data_ptr() for w in (torch.ones(2),) for t in copied({"w": w}).values())
    keep = KeepBest()
    learner = run([keep], epochs=1, go=False)
    learner.model.bert.requires_grad_(False)
    learner.fit()
    assert {name for name in keep.kept if "embeddings" not in name} == {"classifier.weight", "classifier.bias"}


def test_two_of_one_class_keep_each_their_own():
    "Best loss and best F1, through a break; in another order the state is refused."
    columns = lambda: [Scripted([1, 2, 3, 4, 5, 6], "valid_f1"), KeepBest("valid_loss"), KeepBest("valid_f1")]
    broken = run([*columns(), StopAt(9)], go=False)
    with pytest.raises(KeyboardInterrupt):
        broken.fit()
    state, resumed = copy_state(broken), run(columns(), seed=5, go=False)
    load_state_of(resumed, *state)
    for old, new in zip(broken.callbacks[1:3], resumed.callbacks[1:]):
        assert old.monitor == new.monitor and old.kept.keys() == new.kept.keys() and all(torch.equal(w, new.kept[name]) for name, w in old.kept.items())
    with pytest.raises(ValueError, match="kept the best valid_loss, this callback looks at valid_f1"):
        load_state_of(run(columns()[::-1], go=False), *state)


def test_a_number_that_is_not_there():
    with pytest.raises(ValueError, match="no 'valid_f2' in the history, which has epoch, step, train_loss, valid_loss, seconds"):
        run([EarlyStopping(monitor="valid_f2")])
    assert epochs_since_best([], "valid_loss", False) == 0


class StopAt(Callback):
    def __init__(self, step):
        self.at = step

    def after_update(self):
        if self.learner.updates == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("step", [3, 6, 7, 9])
def test_early_stopping_survives_a_break(step):
    "Stopped by ^C and resumed in a new process, the best weights are those of the straight run."
    values = [3, 1, 2, 1.5, 4, 0]
    straight = run([Scripted(values), EarlyStopping(3)])
    assert straight.epoch == 5
    broken = run([Scripted(values), EarlyStopping(3), StopAt(step)], go=False)
    with pytest.raises(KeyboardInterrupt):
        broken.fit()
    resumed = run([Scripted(values), EarlyStopping(3)], seed=5, go=False)
    load_state_of(resumed, *copy_state(broken))
    resumed.fit()
    assert resumed.epoch == 5 and resumed.losses == straight.losses
    assert same(resumed.model, weights(straight.model))


def test_a_stopped_run_stays_stopped():
    learner = run([Scripted([1, 2, 3, 0, 0, 0]), EarlyStopping(2)])
    assert learner.epoch == 3 and learner.fit().epoch == 3


def test_an_interrupted_run_keeps_its_newest_weights():
    "Only a run that is over goes back to the best: one that will go on must not."
    script, keep = Scripted([1, 2, 3, 4, 5, 6]), KeepBest()
    learner = run([script, keep, StopAt(5)], go=False)
    with pytest.raises(KeyboardInterrupt):
        learner.fit()
    assert not same(learner.model, script.weights[0]) and same(learner.model, weights(learner.model))
    assert set(keep.kept) == set(weights(learner.model)) and not learner.finished


def copy_state(learner):
    "The state as a file would hold it: tensors copied, the rest through JSON."
    tensors, scalars = state_of(learner)
    return {k: v.clone() for k, v in tensors.items()}, json.loads(json.dumps(scalars))


def rows(path):
    return list(csv.DictReader(path.open(newline="")))


def test_csv_of_epochs_and_of_updates(tmp_path):
    learner = run([CSVLogger(tmp_path / "new" / "epochs.csv"), CSVLogger(tmp_path / "updates.csv", every="update")], epochs=3)
    table = rows(tmp_path / "new" / "epochs.csv")
    assert [{k: float(v) for k, v in row.items()} for row in table] == learner.history
    table = rows(tmp_path / "updates.csv")
    assert list(table[0]) == ["step", "epoch", "loss", "lr", "grad_norm"] and [float(r["loss"]) for r in table] == learner.losses
    assert [int(r["step"]) for r in table] == list(range(1, 7)) and float(table[0]["lr"]) == 0.0 < float(table[0]["grad_norm"])


def test_csv_of_a_resumed_run_has_each_row_once(tmp_path):
    path = tmp_path / "updates.csv"
    broken = run([CSVLogger(path, every="update"), StopAt(3)], go=False)
    states = {}
    broken.callbacks.insert(1, type("Save", (Callback,), dict(after_update=lambda self: states.update({broken.updates: copy_state(broken)})))())
    with pytest.raises(KeyboardInterrupt):
        broken.fit()
    assert len(rows(path)) == 3
    resumed = run([CSVLogger(path, every="update")], go=False)
    load_state_of(resumed, *states[2])
    resumed.fit()
    assert [float(r["loss"]) for r in rows(path)] == resumed.losses
    run([CSVLogger(path, every="update")], epochs=1)
    assert len(rows(path)) == 2  # a new run starts a new file


FOREIGN = {"other": b"day,rain\n1,0.4\n", "binary": bytes(range(256)), "text": b"just a note", "steps": b"step,value\n1,2\n", "no numbers": b"epoch,step,train_loss\n1,one,0.4\n",
           "of updates": b"step,epoch,loss,lr,grad_norm\n1,0,0.7,0.1,1.0\n"}


@pytest.mark.parametrize("what", FOREIGN)
def test_somebody_elses_csv_stays_as_it_is(tmp_path, what):
    path = tmp_path / "table.csv"
    path.write_bytes(FOREIGN[what])
    with pytest.raises(ValueError, match="table.csv is not a file of numbers by epoch that CSVLogger wrote .*Name another path"):
        run([CSVLogger(path)], epochs=1)
    assert path.read_bytes() == FOREIGN[what] and os.listdir(tmp_path) == ["table.csv"]


def test_csv_is_opened_once_and_each_row_is_there_at_once(tmp_path, monkeypatch):
    opened, seen, plain = [], [], Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: opened.append(self.name) or plain(self, *a, **k))
    look = type("Look", (Callback,), dict(after_update=lambda self: seen.append(len((tmp_path / "a.csv").read_bytes().splitlines()))))()
    run([CSVLogger(tmp_path / "a.csv", every="update"), look], epochs=2)
    assert opened.count(".a.csv.new") == 1 and seen == [2, 3, 4, 5] and os.listdir(tmp_path) == ["a.csv"]


@pytest.mark.parametrize("left", [b"", b"step,epoch,loss,lr,grad_norm\n", b"step,epoch,loss,lr,grad_norm\n1,0,0."])
def test_what_a_killed_run_left_is_no_hindrance(tmp_path, left):
    (tmp_path / "a.csv").write_bytes(left)
    learner = run([CSVLogger(tmp_path / "a.csv", every="update")], epochs=1)
    assert [float(row["loss"]) for row in rows(tmp_path / "a.csv")] == learner.losses
    with pytest.raises(ValueError, match="every='step': choose one of epoch, update"):
        CSVLogger(tmp_path / "a.csv", every="step")


def test_numpy_numbers_reach_the_table(tmp_path):
    learner = run([CSVLogger(tmp_path / "a.csv")], epochs=1, go=False)
    learner.metric = lambda labels, predictions: dict(score=np.float32(0.5), per_class=dict(a=np.float32(1)))
    learner.fit()
    assert rows(tmp_path / "a.csv")[0]["valid_score"] == "0.5" and learner.history[0]["valid_per_class"] == {"a": 1.0}


def test_tensorboard_of_a_resumed_run_has_each_point_once(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    broken, states = run([TensorBoard(tmp_path), StopAt(3)], go=False), {}
    broken.callbacks.insert(1, type("Save", (Callback,), dict(after_update=lambda self: states.update({broken.updates: copy_state(broken)})))())
    with pytest.raises(KeyboardInterrupt):
        broken.fit()
    resumed = run([TensorBoard(tmp_path)], epochs=6, go=False)
    load_state_of(resumed, *states[2])
    resumed.fit()
    points = event_accumulator.EventAccumulator(str(tmp_path)).Reload().Scalars("update/loss")
    assert [point.step for point in points] == list(range(1, 13)) and [point.value for point in points] == pytest.approx(resumed.losses)


def test_tensorboard_reads_it_back(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner = run([TensorBoard(tmp_path)], epochs=2)
    events = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert [e.step for e in events.Scalars("update/loss")] == [1, 2, 3, 4]
    assert [e.value for e in events.Scalars("update/loss")] == pytest.approx(learner.losses)
    assert [e.value for e in events.Scalars("epoch/valid_loss")] == pytest.approx([row["valid_loss"] for row in learner.history])
    assert {"update/lr", "update/grad_norm", "epoch/train_loss"} <= set(events.Tags()["scalars"])


def test_tensorboard_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        TensorBoard(tmp_path)


def test_progress_bar(monkeypatch, capsys):
    monkeypatch.setattr("ft_course.training.callbacks.tqdm", partial(tqdm, disable=False))
    bar = ProgressBar()
    learner = run([bar], epochs=2)
    assert bar.bar.n == bar.bar.total == learner.total_steps == 4
    text = capsys.readouterr().err
    assert "4/4" in text and "valid_loss" in text and "loss=" in text


def test_only_the_main_process_has_the_watchers(monkeypatch, tmp_path):
    monkeypatch.setattr("ft_course.training.learner.processes", lambda: (1, 1))
    kinds = [EarlyStopping(), ProgressBar(), CSVLogger(tmp_path / "a.csv"), TensorBoard(tmp_path), LiveCurve(), Interruptible()]
    assert [type(c).__name__ for c in run(kinds, go=False).callbacks] == ["EarlyStopping", "Interruptible"]


def test_live_curve(monkeypatch):
    shown = []

    class Handle:
        def update(self, figure):
            shown.append(figure)

    monkeypatch.setattr("IPython.display.display", lambda figure, display_id: shown.append(figure) or Handle())
    learner = run([LiveCurve(seconds=0)], epochs=2)
    assert len(shown) == learner.total_steps + 1
    lines = {line.get_label(): line for line in shown[-1].axes[0].get_lines()}
    assert lines["an update"].get_ydata().tolist() == learner.losses
    assert lines["validation"].get_xdata().tolist() == [2, 4]


def test_smooth():
    values = [float(x) for x in torch.rand(50)]
    for i, mean in enumerate(smooth(values, 7)):
        window = values[max(0, i - 6) : i + 1]
        assert mean == pytest.approx(sum(window) / len(window))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("event", ["after_loss", "after_backward", "after_update"])
def test_interrupt_waits_for_the_end_of_the_update(event, number):
    "A signal in the middle of an update: the update is finished, the run resumes to the same bits, the old handlers are back."
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    def press(self):
        if self.learner.updates == 2:
            os.kill(os.getpid(), number)

    learner = run([type("Press", (Callback,), {event: press})(), Interruptible()], go=False)
    with pytest.raises(KeyboardInterrupt):
        learner.fit()
    assert learner.updates == (2 if event == "after_update" else 3) and not learner.finished
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    learner.callbacks = []
    assert learner.fit().losses == run([]).losses


def test_callbacks_end_well_when_another_cancels_first(tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    cancel = type("Cancel", (Callback,), dict(before_fit=lambda self: (_ for _ in ()).throw(CancelFit)))()
    learner = run([cancel, ProgressBar(), TensorBoard(tmp_path), CSVLogger(tmp_path / "a.csv"), Interruptible(), EarlyStopping()])
    assert learner.updates == 0 and signal.getsignal(signal.SIGINT) is handler
