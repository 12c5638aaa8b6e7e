"""What every test runs under: no hub, no network, and the public data sets where they are at hand."""
import os
import socket
from pathlib import Path

ROOT = Path(__file__).parent.parent
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TQDM_DISABLE="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("FT_COURSE_DATA", str(ROOT.parent / "shared" / "data"))

import pytest

PROJECT = {"test_" + name for name in ("editions", "exercises", "export", "glossary", "install", "lessons", "notebooks", "results", "site", "style")}


def pytest_addoption(parser):
    parser.addoption("--fast", action="store_true", help="the library's own tests, which need none of the tools for lessons, site and packages")


def pytest_ignore_collect(collection_path, config):
    return True if config.getoption("fast") and collection_path.stem in PROJECT else None


LOOPBACK = ("127.", "::1", "localhost")
real_connect = socket.socket.connect


def guarded_connect(self, address):
    "Let a test reach this machine only: any other address fails it."
    if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(LOOPBACK):
        pytest.fail(f"a test opened a connection to {address}: tests reach the network never")
    return real_connect(self, address)


socket.socket.connect = guarded_connect


@pytest.fixture(scope="session")
def public_data() -> Path:
    "The folder of public data sets that FT_COURSE_DATA names; the test is skipped where it is absent."
    folder = Path(os.environ["FT_COURSE_DATA"])
    if not folder.is_dir():
        pytest.skip(f"no public data sets: set FT_COURSE_DATA to a folder that holds them (looked at {folder})")
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    "A folder with a model that trains in a moment."
    from command import tiny_folder

    return tiny_folder(tmp_path_factory.mktemp("models") / "tiny")
