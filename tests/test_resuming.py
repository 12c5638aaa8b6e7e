"""Resuming is bit-exact: processes killed by SIGKILL at random moments end where an unbroken run ends."""
import json
import logging
import multiprocessing as mp
import os
import random
import shutil
import signal
import sys
import time
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForTokenClassification

from ft_course.model.files import CorruptCheckpoint
from ft_course.model.parameters import weights
from ft_course.training.callbacks import Interruptible
from ft_course.training.learner import Callback, Learner
from ft_course.training.resuming import SaveState, latest, load_state, load_state_of, read_tensors, resume, save_state, saved_states, state_of
from ft_course.training.updates import TrainingConfig

CONFIG = TrainingConfig(epochs=3, lr=2e-3, batch_size=4, gradient_accumulation_steps=2, schedule="cosine")
UPDATES = 24


class Remember(Callback):
    "A callback with a state of both kinds."

    def __init__(self):
        self.seen, self.mean = 0, torch.zeros(3)

    def after_update(self):
        self.seen += 1
        self.mean = self.mean * 0.9 + self.learner.logits.detach().mean((0, 1))

    def state_dict(self):
        return {"mean": self.mean}, {"seen": self.seen}

    def load_state_dict(self, tensors, scalars):
        self.mean, self.seen = tensors["mean"], scalars["seen"]


def new_learner(callbacks=(), config=CONFIG, hidden=32):
    "A random BERT with dropout on made-up sentences of many lengths."
    torch.set_num_threads(1)
    torch.manual_seed(0)
    chance = random.Random(0)
    data = []
    for _ in range(62):
        ids = [chance.randrange(5, 60) for _ in range(chance.randint(3, 20))]
        data.append(dict(input_ids=ids, attention_mask=[1] * len(ids), labels=[i % 3 for i in ids]))
    size = BertConfig(vocab_size=60, hidden_size=hidden, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_labels=3)
    return Learner(BertForTokenClassification(size), data, data[:9], config, callbacks=callbacks)


def outcome(learner):
    "All that a run leaves, without the clock."
    history = [{k: v for k, v in row.items() if k != "seconds"} for row in learner.history]
    rest = {k: v for callback in learner.callbacks if isinstance(callback, Remember) for k, v in vars(callback).items() if k != "learner"}
    return dict(weights(learner.model)), state_of(learner)[0], learner.losses, history, rest


def assert_same(a, b):
    "Equal to the last bit, tensors and numbers."
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        [assert_same(a[k], b[k]) for k in a]
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        [assert_same(x, y) for x, y in zip(a, b)]
    else:
        assert a == b


@pytest.fixture(scope="module")
def unbroken():
    learner = new_learner([Remember()]).fit()
    assert learner.updates == UPDATES
    return outcome(learner)


class Stop(Callback):
    "An error at an event, when so many updates are done."

    def __init__(self, event, step):
        setattr(self, event, lambda: self.stop(step))

    def stop(self, step):
        if self.learner.updates >= step:
            raise InterruptedError


# ---------------------------------------------------------------- exact

@pytest.mark.parametrize("event, step", [("before_update", 1), ("after_loss", 8), ("after_backward", 7), ("after_update", 13),
                                         ("after_update", 8), ("after_evaluate", 8), ("after_epoch", 16)])
def test_error_at_any_event(tmp_path, unbroken, event, step):
    with pytest.raises(InterruptedError):
        new_learner([Remember(), Stop(event, step), SaveState(tmp_path, every=3)]).fit()
    learner = new_learner([Remember(), SaveState(tmp_path, every=3)])
    resume(learner, tmp_path)
    assert_same(outcome(learner.fit()), unbroken)


def test_every_step_can_be_resumed(tmp_path, unbroken):
    new_learner([Remember(), SaveState(tmp_path, every=1, keep=99)]).fit()
    assert len(saved_states(tmp_path)) == UPDATES
    for place in saved_states(tmp_path)[::5]:
        learner = new_learner([Remember()])
        load_state(learner, place)
        assert learner.updates == int(place.name[-8:])
        assert_same(outcome(learner.fit()), unbroken)


def test_finished_run_stays_finished(tmp_path, unbroken):
    new_learner([Remember(), SaveState(tmp_path)]).fit()
    learner = new_learner([Remember()])
    resume(learner, tmp_path)
    assert_same(outcome(learner.fit()), unbroken)


def test_random_numbers_drawn_in_between_do_not_matter(tmp_path, unbroken):
    save_state(new_learner([Remember()]), tmp_path)
    learner = new_learner([Remember()])
    resume(learner, tmp_path)
    torch.rand(1000)
    assert_same(outcome(learner.fit()), unbroken)


# ---------------------------------------------------------------- killed

def child(folder, started):
    "One life of a run, in a process that may be killed at any moment."
    learner = new_learner([Remember(), SaveState(folder, every=2)])
    resume(learner, folder)
    started.send(learner.updates)
    learner.fit()


def live(context, folder, seconds):
    "Let a process live so long after its start; True if it was killed, False if it was through before."
    here, there = context.Pipe()
    process = context.Process(target=child, args=(folder, there))
    process.start()
    there.close()
    here.recv()
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


@pytest.fixture
def context(monkeypatch):
    "Starts processes from one that has torch loaded already, so that a start is cheap."
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    context = mp.get_context("forkserver")
    context.set_forkserver_preload([__name__, "transformers.models.bert.modeling_bert"])
    return context


def test_sigkill_at_random_moments(tmp_path, context, unbroken):
    live(context, tmp_path / "warm", 0)
    seed = int(os.environ.get("FT_COURSE_SEED", time.time_ns() % 2**32))
    print(f"FT_COURSE_SEED={seed} draws these moments again")
    start, chance, kills, runs = time.perf_counter(), random.Random(seed), 0, 0
    assert not live(context, tmp_path / "measure", 60)
    whole = time.perf_counter() - start
    while kills < 24:
        folder, runs = tmp_path / f"run{runs}", runs + 1
        while live(context, folder, chance.uniform(0, whole / 3)):
            kills += 1
        learner = new_learner([Remember()])
        load_state(learner, latest(folder))
        assert_same(outcome(learner), unbroken)
        assert [place.name for place in saved_states(folder)] == ["step-00000022", "step-00000024"]
    print(f"{kills} kills in {runs} runs of {whole:.1f} s, {time.perf_counter() - start:.0f} s in all")


# ---------------------------------------------------------------- spoilt

def spoil(file, how):
    data = file.read_bytes()
    {"cut": lambda: file.write_bytes(data[:-7]), "gone": file.unlink,
     "altered": lambda: file.write_bytes(data[:-3] + bytes([data[-3] ^ 4]) + data[-2:])}[how]()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "The folder of a run, with states of 20 and 24 updates."
    folder = tmp_path_factory.mktemp("finished")
    new_learner([Remember(), SaveState(folder, every=5)]).fit()
    return folder


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "checksums.json"])
@pytest.mark.parametrize("how", ["cut", "gone", "altered"])
def test_spoilt_state(tmp_path, finished, caplog, unbroken, name, how):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    older, newest = saved_states(tmp_path)
    spoil(newest / name, how)
    learner = new_learner([Remember()])
    if (name, how) == ("checksums.json", "altered"):  # a digit or a bracket: either way it cannot vouch for the files
        (newest / name).write_bytes((newest / name).read_bytes().replace(b'"bytes": ', b'"bytes": 1', 1))
    with pytest.raises(CorruptCheckpoint, match=newest.name):
        load_state(learner, newest)
    with caplog.at_level(logging.WARNING):
        assert resume(learner, tmp_path) == older
    assert newest.name in caplog.text
    assert_same(outcome(learner.fit()), unbroken)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whoever_asks_for_the_end_loses_no_update(tmp_path, unbroken, number):
    "The state is saved before the run ends, between two updates."
    ask = type("Ask", (Callback,), dict(before_update=lambda self: self.learner.updates == 6 and os.kill(os.getpid(), number)))
    with pytest.raises(KeyboardInterrupt):
        new_learner([Remember(), ask(), SaveState(tmp_path), Interruptible()]).fit()
    assert [place.name for place in saved_states(tmp_path)] == ["step-00000007"]
    learner = new_learner([Remember()])
    resume(learner, tmp_path)
    assert_same(outcome(learner.fit()), unbroken)


@pytest.mark.parametrize("event, updates, epoch", [("after_update", 7, 0), ("after_evaluate", 8, 1), ("after_epoch", 8, 1)])
def test_a_signal_between_saving_and_stopping_loses_nothing(tmp_path, unbroken, event, updates, epoch):
    "Whoever saves and whoever stops hear the same answer, so the run stops where a state is: after update 8, the last of its epoch, or after the epoch."
    ask = type("Ask", (Callback,), {event: lambda self: self.learner.updates == updates and os.kill(os.getpid(), signal.SIGTERM)})
    with pytest.raises(KeyboardInterrupt):
        new_learner([Remember(), SaveState(tmp_path), ask(), Interruptible()]).fit()
    learner = new_learner([Remember()])
    resume(learner, tmp_path)
    assert (learner.updates, learner.epoch) == (8, epoch)
    assert_same(outcome(learner.fit()), unbroken)


def test_a_state_says_who_wrote_it(tmp_path):
    place = save_state(new_learner(), tmp_path)
    learner = new_learner()
    learner.parallel = "fsdp"
    with pytest.raises(ValueError, match="step-00000000 was written by processes that copy the weights: go on with the same parallel="):
        read_tensors(learner, place)


def test_nothing_to_resume(tmp_path):
    learner = new_learner()
    assert latest(tmp_path) is None and resume(learner, tmp_path / "absent") is None and learner.updates == 0


@pytest.mark.parametrize("other, reason", [
    (dict(config=replace(CONFIG, lr=1e-3)), "lr"),
    (dict(hidden=16), "another model's"),
])
def test_state_of_another_run_is_refused(tmp_path, other, reason):
    place = save_state(new_learner(), tmp_path)
    with pytest.raises(ValueError, match=reason):
        load_state(new_learner(**other), place)


# ---------------------------------------------------------------- files

def test_what_is_written(tmp_path):
    learner = new_learner([Remember(), SaveState(tmp_path, keep=2)]).fit()
    assert [place.name for place in saved_states(tmp_path)] == ["step-00000016", "step-00000024"]
    newest = latest(tmp_path)
    assert sorted(os.listdir(newest)) == ["checksums.json", "state.json", "state.safetensors"]
    tensors = load_file(newest / "state.safetensors")
    assert len(tensors) == len(state_of(learner)[0])
    assert json.loads((newest / "state.json").read_text())["config"] == asdict(CONFIG)


def test_loaded_tensors_do_not_lie_in_the_file(tmp_path):
    place = save_state(new_learner().fit(), tmp_path)
    learner = new_learner()
    load_state(learner, place)
    before = {name: t.clone() for name, t in state_of(learner)[0].items()}
    (place / "state.safetensors").write_bytes(b"")
    assert_same(state_of(learner)[0], before)


def test_rubbish_of_killed_saves_is_cleared_away(tmp_path):
    learner = new_learner()
    place = save_state(learner, tmp_path)
    place.rename(place.with_name(f".{place.name}.old"))  # killed between the two renames
    (place.parent / ".step-00000007.new").mkdir()  # killed while writing
    assert latest(tmp_path) == place
    save_state(learner, tmp_path)
    assert os.listdir(place.parent) == [place.name]
