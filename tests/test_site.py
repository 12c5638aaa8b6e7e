"""The built site: complete, local, readable. `make test` builds it first."""
import json
import re
import shutil
import subprocess
from functools import lru_cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup

from ft_course.teach.glossary import entries
from ft_course.teach.lessons import lessons
from ft_course.teach.site import MOVED, sphinx, write_signposts, write_static

SITE = Path(__file__).parent.parent / "_site"
PAGES = [page.relative_to(SITE).as_posix() for page in sorted(SITE.rglob("*.html")) if "_static" not in page.parts and page.relative_to(SITE).with_suffix("").as_posix() not in MOVED]
LESSONS = lessons()
SAMPLE = ["index.html", "search.html", "api/index.html", "api/theory.losses.html", "6_peft/66_comparison.html", *sorted({lesson.part: f"{lesson.name}.html" for lesson in LESSONS}.values())]  # all kinds of pages; 66 has links in its quiz
MODULES = [lesson.module for lesson in lessons() if lesson.module]
ABSOLUTE = re.compile(r"(?<![\w.:/~<])/(home|root|tmp|work|Users|usr|var|opt)/\w")

pytestmark = pytest.mark.skipif(not (SITE / "index.html").exists(), reason="no _site: run make site")
each_page = pytest.mark.parametrize("page", PAGES)


@lru_cache
def soup(page: str) -> BeautifulSoup:
    "A page, parsed."
    return BeautifulSoup((SITE / page).read_text(encoding="utf-8"), "html.parser")


@lru_cache
def anchors(page: str) -> set[str]:
    "Everything on a page that a link can point to."
    return {tag["id"] for tag in soup(page).find_all(id=True)}


def target(page: str, link: str) -> str:
    "The file of the site that a link on a page leads to."
    path = unquote(urlsplit(link).path)
    return (SITE / page).parent.joinpath(path).resolve().relative_to(SITE.resolve()).as_posix() if path else page


@each_page
def test_scripts_styles_and_pictures_are_local(page):
    tags = [*soup(page).find_all(["script", "img", "iframe", "source"], src=True), *soup(page).find_all("link", href=True)]
    links = [tag.get("src") or tag["href"] for tag in tags]
    assert not [link for link in links if urlsplit(link).scheme not in ("", "data") or link.startswith("//")]
    assert not [link for link in links if link[:5] != "data:" and not (SITE / target(page, link)).exists()]


def test_styles_ask_for_nothing_from_elsewhere():
    for style in SITE.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", style.read_text(encoding="utf-8")), style.name


@each_page
def test_links_resolve(page):
    for link in {tag["href"] for tag in soup(page).find_all("a", href=True)}:
        if urlsplit(link).scheme:
            continue
        there, anchor = target(page, link), unquote(urlsplit(link).fragment)
        assert (SITE / there).is_file(), link
        assert not anchor or anchor in anchors(there), link


@each_page
def test_pictures_have_alt_text(page):
    pictures = soup(page).find_all("img")
    assert not [tag["src"] for tag in pictures if len(tag.get("alt", "")) < 20 or tag["alt"].startswith("../")]


@each_page
def test_pages_are_light(page):
    tags = [*soup(page).find_all(["script", "img"], src=True), *soup(page).find_all("link", href=True, rel=["stylesheet", "preload"])]
    loaded = {target(page, tag.get("src") or tag["href"]) for tag in tags if (tag.get("src") or tag["href"])[:5] != "data:"} | {page}
    assert sum((SITE / file).stat().st_size for file in loaded if "mathjax" not in file) < 1.5e6


@each_page
def test_icons_are_there(page):
    kept = (SITE / "_static/scripts/fontawesome.js").read_text(encoding="utf-8")
    styles = {"solid", "regular", "brands", "lg", "fw", "sm"}
    named = {name[3:] for tag in soup(page).select("[class*=fa-]") for name in tag["class"] if name.startswith("fa-")} - styles
    assert not [name for name in named if not re.search(rf'[{{,"]{name}"?:\[\d+,', kept)]


@each_page
def test_headings_are_in_order(page):
    levels = [int(tag.name[1]) for tag in (soup(page).find("article") or soup(page).find("main")).find_all(re.compile("^h[1-6]$"))]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(below <= above + 1 for above, below in zip(levels, levels[1:]))


@each_page
def test_outputs_are_quiet(page):
    for output in soup(page).select(".cell_output"):
        text = output.get_text()
        assert not re.search(r"Traceback \(most recent|\w+Warning: |^WARNING", text, re.M), text[:500]
        assert not ABSOLUTE.search(text), text[:500]


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)
def test_lesson_has_a_page_with_its_measured_cost(lesson):
    page = soup(f"{lesson.name}.html")
    assert page.find("h1").get_text().startswith(lesson.title)
    assert re.search(r"Runs in \d+ (seconds|minutes) with \d+\.\d GB", page.select_one(".facts").get_text())
    assert len(page.select(".facts a.download")) == 2
    assert bool(page.find(id="what-you-built")) == bool(lesson.module)
    assert not re.search(r"^#\|", page.find("article").get_text(), re.M), "a directive shows"


def test_lessons_name_the_concepts_that_live_in_them():
    named = {(lesson.number, link.get_text()) for lesson in LESSONS for facts in soup(f"{lesson.name}.html").select(".facts")
             if facts.get_text().startswith("Concepts: ") for link in facts.select("a[href*=glossary]")}
    assert named == {(entry.lesson, entry.term) for entry in entries() if entry.lesson}


@pytest.mark.parametrize("module", MODULES)
def test_module_has_a_reference_page(module):
    page = soup(f"api/{module}.html")
    assert page.select("dt.sig"), "nothing documented"
    assert all(tag["id"].startswith(f"ft_course.{module}.") for tag in page.select("dt.sig"))


def test_the_reference_shows_examples_and_code_can_be_copied():
    pages = [soup(f"api/{module}.html") for module in MODULES]
    assert sum("In the lesson:" in page.get_text() for page in pages) > len(pages) / 2
    assert "('B', 'work-of-art')" in soup("api/data.tags.html").get_text()
    assert all(page.find("script", src=re.compile("copybutton.js")) for page in pages)


def test_a_build_that_fails_leaves_the_pages_of_before(tmp_path):
    src, site = tmp_path / "src", tmp_path / "site"
    write_static(src)
    (src / "index.md").write_text("# Good", encoding="utf-8")
    assert sphinx(src, site) == 0
    before = (site / "index.html").read_text(encoding="utf-8")
    (src / "index.md").write_text("# Bad\n\n{eq}`eq-nowhere`", encoding="utf-8")
    assert sphinx(src, site) != 0
    assert (site / "index.html").read_text(encoding="utf-8") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["site", "src"]


@pytest.mark.parametrize("old", MOVED)
def test_a_page_that_moved_leads_on(old):
    page = soup(f"{old}.html")
    refresh = page.find("meta", attrs={"http-equiv": "refresh"})["content"]
    link, = page.find_all("a")
    assert refresh == f"0; url={link['href']}" and target(f"{old}.html", link["href"]) == f"{MOVED[old]}.html"
    assert (SITE / f"{MOVED[old]}.html").is_file() and page.html["lang"] == "en" and page.find("h1")


def test_signposts_lead_somewhere_and_cover_no_page(tmp_path):
    (tmp_path / "new.html").write_text("new")
    write_signposts(tmp_path, {"a/b/old": "new"})
    assert 'href="../../new.html"' in (tmp_path / "a/b/old.html").read_text()
    for moved, error in (({"other": "nowhere"}, FileNotFoundError), ({"new": "new"}, FileExistsError)):
        with pytest.raises(error):
            write_signposts(tmp_path, moved)
    assert (tmp_path / "new.html").read_text() == "new"


def test_mathematics_and_search_are_there():
    assert any(soup(page).select(".math") for page in PAGES)
    assert (SITE / "_static/mathjax/tex-svg-full.js").exists()
    index = (SITE / "searchindex.js").read_text(encoding="utf-8")
    assert all(f'"{lesson.name}"' in index for lesson in LESSONS)


# ---- in a browser

CHECK = """<body><script>
async function look(url) {
  const frame = document.createElement("iframe");
  frame.style = "width: 360px; height: 800px; border: 0";
  frame.src = url;
  const loaded = new Promise(done => frame.onload = done);
  document.body.append(frame);
  await loaded;
  const page = frame.contentDocument, count = what => page.querySelectorAll(what).length;
  await frame.contentWindow.MathJax?.startup?.promise;
  const seen = [];
  frame.contentWindow.eval(axe);
  for (const theme of SAMPLE.includes(url) ? ["light", "dark"] : []) {
    page.documentElement.dataset.theme = theme;
    const { violations } = await frame.contentWindow.axe.run({ include: [["body"]], exclude: [["mjx-container"]] }, { runOnly: ["wcag2a", "wcag2aa"], resultTypes: ["violations"] });
    seen.push(...violations.map(v => `${theme}: ${v.id}: ${v.nodes[0].html.slice(0, 200)}`));
  }
  const found = { url, seen, formulas: count(".math"), drawn: count("mjx-container"), refused: count("[data-mjx-error], mjx-merror"),
                  wide: page.documentElement.scrollWidth, broken: [...page.images].filter(i => !i.naturalWidth).map(i => i.src) };
  frame.remove();
  return found;
}
let axe;
(async () => {
  const found = [];
  axe = await (await fetch("axe.js")).text();
  for (const url of PAGES) found.push(await look(url));
  document.body.textContent = JSON.stringify(found);
})();
</script></body>"""


class Handler(SimpleHTTPRequestHandler):
    "The site, and a page that opens all others on a narrow screen."

    made = {"/check.html": CHECK.replace("PAGES", json.dumps(PAGES)).replace("SAMPLE", json.dumps(SAMPLE)),
            "/axe.js": (files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8")}

    def do_GET(self):
        if self.path not in self.made:
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(self.made[self.path].encode())

    def log_message(self, *args):
        "Say nothing."


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    "A function: address on this machine -> the page's elements and what its console said."
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        pytest.skip("no chromium on this machine")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=SITE))
    Thread(target=server.serve_forever, daemon=True).start()
    flags = ("--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
             "--disable-component-update --disable-sync --enable-logging=stderr --v=0 --virtual-time-budget=120000 --dump-dom").split()

    def open_page(address: str) -> tuple[BeautifulSoup, list[str]]:
        url = address if "://" in address else f"http://127.0.0.1:{server.server_port}/{address}"
        profile = f"--user-data-dir={tmp_path_factory.mktemp('profile')}"
        elsewhere = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        run = subprocess.run([chromium, *flags, profile, elsewhere, url], capture_output=True, text=True, timeout=300)
        said = [line for line in run.stderr.splitlines() if "CONSOLE" in line and "[PST]" not in line]
        return BeautifulSoup(run.stdout, "html.parser"), said

    yield open_page
    server.shutdown()


def test_every_page_in_a_browser(browse):
    page, said = browse("check.html")
    found = json.loads(page.body.get_text())
    assert not said
    assert [row["url"] for row in found] == PAGES
    assert not [row for row in found if row["drawn"] != row["formulas"] or row["refused"]], "a formula is not drawn"
    assert not [row for row in found if row["broken"]], "a picture is missing"
    assert not [row for row in found if row["wide"] > 360], "a page is wider than a phone"
    assert sum(row["drawn"] for row in found) > 0
    assert not [row["seen"] for row in found if row["seen"]], "somebody cannot read this"


@each_page
def test_text_is_there_without_scripts(page):
    assert page == "search.html" or len(soup(page).find("article").get_text(strip=True)) > 50


def test_search_finds_a_lesson(browse):
    page, said = browse("search.html?q=spans")
    assert not said
    assert page.select("#search-results li a")


def test_pages_work_from_a_disk(browse):
    page, said = browse((SITE / f"{LESSONS[0].name}.html").resolve().as_uri())
    assert not said
    assert page.find("h1") and len(page.select("mjx-container")) == len(page.select(".math"))
