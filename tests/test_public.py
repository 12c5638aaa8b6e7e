"""Public sets: pins that agree with the files, and downloads that are right, resumed, or absent. The server is on this machine."""
import gzip
import hashlib
import io
import json
import re
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

from ft_course.data.formats import BadData
from ft_course.data.public import (ALIASES, PUBLIC, File, Pin, about, digest, fetch, fetch_pin, lacking, needed, pins,
                                   public_set, source_of)
from ft_course.data.sources import load

TEXT = b"".join(b"text %d\tnegative\n" % i for i in range(3000))
FILE = File("train.tsv", *digest(TEXT), "data/train.tsv")
PIN = Pin("someone/soups", "0123456789abcdef" * 2 + "01234567", "CC0 1.0", "Somebody: Soups", [FILE])
PLACE = f"/{PIN.repository}/{PIN.commit}/{FILE.path}"


class Host(BaseHTTPRequestHandler):
    "Serves `server.files`; misbehaves as `server.way` says: a list of the ways of the next answers, the last one stays."

    def do_GET(self):
        way = self.server.way.pop(0) if len(self.server.way) > 1 else self.server.way[0]
        self.server.asked.append((self.path, self.headers.get("Range"), self.headers.get("Accept-Encoding")))
        body = self.server.files.get(unquote(self.path))
        if body is None or way == "gone":
            return self.send_error(503 if body else 404)
        start = 0 if way == "deaf" or not self.headers.get("Range") else int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])
        if start and start >= len(body):
            return self.send_error(416)
        start -= 1000 * (way == "early" and start > 1000)
        body = bytes(reversed(body)) if way == "other" else body + b"!" * 999 if way == "longer" else body
        self.send_response(206 if start and way != "says 200" else 200)
        if way != "no length":
            self.send_header("Content-Length", len(body) - start)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        self.wfile.write(body[start:][: {"stops": 20000, "no length": 20000, "nothing": 0}.get(way)])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Host) as server:
        server.files, server.way, server.asked = {PLACE: TEXT}, ["well"], []
        server.base = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def left(folder: Path) -> list[str]:
    "What lies in a set's folder, but for the lock."
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != "lock")


# ---- downloads

@pytest.mark.parametrize("way", [["well"], ["deaf"], ["stops"], ["stops", "well"], ["stops", "deaf"], ["stops", "early"], ["stops", "says 200"], ["stops", "stops", "well"]], ids=" ".join)
def test_what_arrives_is_right(server, tmp_path, way):
    server.way = way
    fetch_pin(PIN, tmp_path, server.base)
    assert (tmp_path / "train.tsv").read_bytes() == TEXT and left(tmp_path) == ["train.tsv"]


def test_the_rest_is_asked_for_and_never_compressed(server, tmp_path):
    server.way = ["stops", "well"]
    fetch_pin(PIN, tmp_path, server.base)
    (_, first, _), (_, second, _) = server.asked
    assert first is None and 0 < int(second[len("bytes=") : -1]) <= 20000
    assert {encoding for *_, encoding in server.asked} == {"identity"}


@pytest.mark.parametrize("way", [["stops", "nothing"], ["stops", "gone"]], ids=" ".join)
def test_a_later_call_goes_on(server, tmp_path, way):
    server.way = way
    with pytest.raises(OSError):
        fetch_pin(PIN, tmp_path, server.base)
    (part,) = left(tmp_path)
    have = (tmp_path / part).stat().st_size
    assert part.startswith(".parts") and (tmp_path / part).read_bytes() == TEXT[:have] and have > 10000
    server.way, server.asked[:] = ["well"], []
    fetch_pin(PIN, tmp_path, server.base)
    assert [asked for _, asked, _ in server.asked] == [f"bytes={have}-"] and left(tmp_path) == ["train.tsv"]


@pytest.mark.parametrize("way", ["other", "longer", "no length"])
def test_wrong_bytes_leave_nothing(server, tmp_path, way):
    server.way = [way]
    with pytest.raises(BadData, match=r"train\.tsv: .* came, .* pinned"):
        fetch_pin(PIN, tmp_path, server.base)
    assert left(tmp_path) == []
    server.way = ["well"]
    fetch_pin(PIN, tmp_path, server.base)
    assert left(tmp_path) == ["train.tsv"]


def test_a_part_that_was_spoilt_is_dropped(server, tmp_path):
    (tmp_path / ".parts").mkdir()
    (tmp_path / ".parts" / f"{PIN.commit[:12]}-train.tsv").write_bytes(b"x" * 5000)
    with pytest.raises(BadData):
        fetch_pin(PIN, tmp_path, server.base)
    assert left(tmp_path) == []


def test_a_longer_part_makes_way_for_the_whole(server, tmp_path):
    (tmp_path / ".parts").mkdir()
    (tmp_path / ".parts" / f"{PIN.commit[:12]}-train.tsv").write_bytes(TEXT + b"junk")
    server.way = ["deaf"]
    fetch_pin(PIN, tmp_path, server.base)
    assert (tmp_path / "train.tsv").read_bytes() == TEXT


def test_a_part_that_is_whole_only_needs_its_name(server, tmp_path):
    (tmp_path / ".parts").mkdir()
    (tmp_path / ".parts" / f"{PIN.commit[:12]}-train.tsv").write_bytes(TEXT)
    fetch_pin(PIN, tmp_path, server.base)
    assert left(tmp_path) == ["train.tsv"] and len(server.asked) == 1


def test_a_wrong_file_stays_until_the_right_one_is_here(server, tmp_path):
    (tmp_path / "train.tsv").write_bytes(b"mine")
    server.way = ["other"]
    with pytest.raises(BadData):
        fetch_pin(PIN, tmp_path, server.base)
    assert (tmp_path / "train.tsv").read_bytes() == b"mine"
    server.way = ["well"]
    fetch_pin(PIN, tmp_path, server.base)
    assert (tmp_path / "train.tsv").read_bytes() == TEXT


def test_what_is_right_is_not_asked_for(server, tmp_path):
    (tmp_path / "train.tsv").write_bytes(TEXT)
    fetch_pin(PIN, tmp_path, server.base)
    assert server.asked == []


@pytest.mark.parametrize("status, change", [(404, lambda server: server.files.clear()), (503, lambda server: server.way.insert(0, "gone"))])
def test_a_refusal_is_named(server, tmp_path, status, change):
    change(server)
    with pytest.raises(OSError, match=f"{PLACE}: the server says {status}") as error:
        fetch_pin(PIN, tmp_path, server.base)
    assert "\n" not in str(error.value) and not (tmp_path / "train.tsv").exists()


@pytest.mark.parametrize("base", ["http://127.0.0.1:9", "http://localhost:9"])
def test_without_a_network_there_is_one_line(tmp_path, base):
    with pytest.raises(ConnectionError, match="is there a network?") as error:
        fetch("wnut17", tmp_path, base)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("*/*/*.conll"))


def test_two_at_once_fetch_once(server, tmp_path):
    threads = [threading.Thread(target=fetch_pin, args=(PIN, tmp_path, server.base)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.asked) == 1 and left(tmp_path) == ["train.tsv"]


# ---- archives

def packed(ending: str, members: dict[str, bytes]) -> bytes:
    "An archive as bytes."
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) if ending == "zip" else tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, data in members.items():
            if ending == "zip":
                archive.writestr(name, data)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def archive_pin(ending: str) -> Pin:
    "Two members of one archive."
    return PIN._replace(files=[FILE._replace(path=f"soups.{ending}!in/train.tsv"), File("LICENSE", *digest(b"CC0"), f"soups.{ending}!in/LICENSE")])


@pytest.mark.parametrize("ending", ["zip", "tar.gz"])
@pytest.mark.parametrize("way", [["well"], ["stops", "well"], ["deaf"]], ids=" ".join)
def test_members_are_taken_out(server, tmp_path, ending, way):
    noise = hashlib.shake_256(b"noise").digest(40000)  # not to be compressed: the archive is larger than where the line breaks
    server.files = {PLACE.replace(FILE.path, f"soups.{ending}"): packed(ending, {"in/noise": noise, "in/train.tsv": TEXT, "in/LICENSE": b"CC0"})}
    server.way = way
    fetch_pin(archive_pin(ending), tmp_path, server.base)
    assert left(tmp_path) == ["LICENSE", "train.tsv"] and (tmp_path / "train.tsv").read_bytes() == TEXT


@pytest.mark.parametrize("ending", ["zip", "tar.gz"])
@pytest.mark.parametrize("spoil", [
    lambda data: data[: len(data) // 2],
    lambda data: b"<html>Not here</html>",
    lambda data: data[:60] + b"?" * 200 + data[260:],
    lambda data: b"",
], ids=["cut", "a page", "damaged", "empty"])
def test_a_broken_archive_is_refused(server, tmp_path, ending, spoil):
    good = packed(ending, {"in/train.tsv": TEXT, "in/LICENSE": b"CC0"})
    server.files = {PLACE.replace(FILE.path, f"soups.{ending}"): spoil(good)}
    with pytest.raises(BadData, match="nothing of it was kept") as error:
        fetch_pin(archive_pin(ending), tmp_path, server.base)
    assert "\n" not in str(error.value) and left(tmp_path) == []


@pytest.mark.parametrize("ending", ["zip", "tar.gz"])
@pytest.mark.parametrize("members", [{"other": TEXT}, {"in/train.tsv": TEXT + b"more"}, {"in/train.tsv": bytes(10**7)}], ids=["no member", "more", "a bomb"])
def test_a_member_that_is_not_what_is_pinned(server, tmp_path, ending, members):
    server.files = {PLACE.replace(FILE.path, f"soups.{ending}"): packed(ending, members)}
    with pytest.raises(BadData, match="nothing of it was kept") as error:
        fetch_pin(archive_pin(ending), tmp_path, server.base)
    assert left(tmp_path) == [] and "10,000,000" not in str(error.value)


# ---- the table

def test_every_set_is_pinned():
    assert {source.folder for source in PUBLIC.values()} == set(pins()) and set(ALIASES.values()) <= set(PUBLIC)
    for pin in pins().values():
        assert re.fullmatch("[0-9a-f]{40}", pin.commit) and re.fullmatch(r"[\w.-]+/[\w.-]+", pin.repository) and pin.licence and len(pin.credit) > 20
        assert len({file.name for file in pin.files}) == len(pin.files)
        assert all(re.fullmatch("[0-9a-f]{64}", file.sha256) and file.bytes > 0 and "/" not in file.name for file in pin.files)


@pytest.mark.parametrize("folder", pins())
def test_pins_are_those_of_the_files(public_data, folder):
    entries = {Path(entry["files"][0]["file"]).parent.as_posix(): entry for entry in json.loads((public_data / "MANIFEST.json").read_text())}
    entry, pin = entries[folder], pins()[folder]
    assert (entry["repository"], entry["commit"], entry["licence"]) == (f"https://github.com/{pin.repository}", pin.commit, pin.licence)
    for stated, file in zip(entry["files"], pin.files, strict=True):
        assert (stated["source_path"], stated["raw_bytes"], stated["raw_sha256"]) == (file.path, file.bytes, file.sha256)
        data = (public_data / stated["file"]).read_bytes()
        assert digest(gzip.decompress(data) if stated["file"].endswith(".gz") else data) == (file.bytes, file.sha256)


@pytest.fixture(scope="module")
def upstream_files(public_data) -> dict[str, bytes]:
    "What lies upstream: raw files, archives where the pins say so."
    found, archives = {}, {}
    for folder, pin in pins().items():
        for file in pin.files:
            path = next(path for path in (public_data / folder / file.name, public_data / folder / f"{file.name}.gz") if path.exists())
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            outside, archived, member = file.path.partition("!")
            place = f"/{pin.repository}/{pin.commit}/{outside}"
            archives.setdefault(place, {})[member] = data if archived else None
            found[place] = data
    for place, members in archives.items():
        if "" not in members:
            found[place] = packed("zip" if place.endswith("zip") else "tar.gz", members)
    return found


@pytest.fixture
def upstream(server, upstream_files):
    server.files = upstream_files
    return server


@pytest.mark.parametrize("name", ["wikigold", "ncbi", "vader", "pros-cons", "asap-zh", "cmrc", "sec-filings"])
def test_a_set_by_name(upstream, tmp_path, name):
    said = []
    folder = fetch(name, tmp_path, upstream.base, said.append)
    pin = pins()[source_of(name).folder]
    assert folder == tmp_path / source_of(name).folder and left(folder) == sorted(file.name for file in pin.files)
    assert all(word in said[0] for word in (name, pin.licence, pin.credit, pin.repository)) and lacking(name, tmp_path) == []


@pytest.mark.parametrize("name", ["asap-zh", "vader-tweets"])
def test_load_reads_the_cache_as_it_reads_the_folder(upstream, tmp_path, monkeypatch, name):
    stated = load(name)
    monkeypatch.setenv("FT_COURSE_CACHE", str(tmp_path))
    monkeypatch.delenv("FT_COURSE_DATA")
    with pytest.raises(FileNotFoundError, match=f"ft-course data {name}"):
        load(name)
    fetch(name, base=upstream.base, say=lambda text: None)
    found = load(name)
    assert {split: part.to_dict() for split, part in found.items()} == {split: part.to_dict() for split, part in stated.items()}
    monkeypatch.setenv("FT_COURSE_DATA", str(tmp_path / "elsewhere"))  # a folder without the set: the cache has it
    assert public_set(name)[0] == tmp_path / "data" / source_of(name).folder


@pytest.fixture
def empty(tmp_path, monkeypatch) -> Path:
    "No public sets, and a cache to put some in: the folder that would be FT_COURSE_DATA."
    monkeypatch.setenv("FT_COURSE_CACHE", str(tmp_path))
    monkeypatch.delenv("FT_COURSE_DATA")
    return tmp_path / "data"


def test_a_set_in_part_is_not_read(empty):
    folder = empty / source_of("wnut17").folder
    folder.mkdir(parents=True)
    (folder / "wnut17train.conll").write_text("Ada B-person\n")
    with pytest.raises(FileNotFoundError, match=r"lacks emerging\.dev\.conll, emerging\.test\.annotated"):
        load("wnut17")


@pytest.mark.parametrize("name", [*PUBLIC, *ALIASES])
def test_an_absent_set_says_how_to_get_it(empty, name):
    with pytest.raises(FileNotFoundError) as error:
        load(name)
    assert all(word in str(error.value) for word in (f"ft-course data {name}", about(name)["licence"], "FT_COURSE_DATA"))


@pytest.mark.parametrize("name", ["xquad", "cmrc"])
def test_questions_are_fetched_and_not_loaded(empty, name):
    folder = empty / source_of(name).folder
    folder.mkdir(parents=True)
    for file in needed(name):
        (folder / file).write_text("{}")
    with pytest.raises(ValueError, match="fetched, not loaded"):
        load(name)


@pytest.mark.parametrize("name", ["wnut", "", "WNUT17", "../etc"])
@pytest.mark.parametrize("ask", [fetch, about, public_set])
def test_an_unknown_name_gets_the_list(empty, name, ask):
    with pytest.raises(ValueError) as error:
        ask(name)
    assert all(known in str(error.value) for known in PUBLIC)


def test_an_own_folder_with_the_name_of_an_absent_set(empty, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "snips").mkdir()
    (tmp_path / "snips" / "train.csv").write_text("text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(30)))
    assert load("snips")["train"].features["label"].names == ["a", "b"]
