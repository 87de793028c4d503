"""The report: what it counts, that it stays small and whole, and how it looks in a browser."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from show1_ray.clip import Clip
from show1_ray.dataset import LeaseError, Report, read_status
from show1_ray.dataset.report import REPORT
from show1_ray.dataset.report.facts import SHEET_CLIPS, About, Facts, Sheet, Shown
from show1_ray.dataset.report.page import page, picture, stage_rows, time_axis
from show1_ray.dataset.report.timeline import BARS, BINS, LANES, LOADING, Timeline
from show1_ray.dataset.storage import Storage
from show1_ray.errors import UserError
from tests.dataset.toys import QUICK, SETTINGS, entries, land
from tests.own_ray import own_ray

BEGAN = 1_000_000.0
EVIL = "</script><img src=x onerror=alert(1)>"
ABOUT = About(
    out="out",
    manifest="prompts.parquet",
    pipeline="toy",
    recipe_hash="0123456789abcdef",
    format="mp4",
    stages=("text", "keyframes", "land"),
    total=100,
    began=BEGAN,
)


class Clock:
    """Seconds since the epoch, as the test wants them."""

    def __init__(self) -> None:
        self.now = BEGAN

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.at(str(tmp_path / "out"), QUICK)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def row(number: int, **changes: Any) -> dict[str, Any]:
    clip = {"file_name": f"clips/aa/clip-{number}.mp4", "id": f"clip-{number}", "prompt": f"prompt {number}"}
    return {**clip, "seed": number, "bytes": 5, "width": 48, "height": 32, **changes}


def written(storage: Storage) -> str:
    return storage.read(REPORT).decode()


class Elements(HTMLParser):
    """The elements of a page, the text of all that are shown, and all values of attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.shown: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.shown.append(" ")
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] not in ("style", "script"):
            self.shown.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.shown).split())


def test_whatever_people_and_machines_write_appears_as_text(storage, clock):
    evil = replace(ABOUT, out=f"out{EVIL}", manifest=EVIL, pipeline=EVIL, job=EVIL)
    storage.write(f"clips/{EVIL}.mp4", b"video")
    with Report(storage, evil, clock=clock) as report:
        report.station_lost(3, f"lost: {EVIL}")
        report.station_shut_out(4, f"shut out: {EVIL}")
        report.clip_done(row(1, prompt=f"prompt {EVIL}", id=f"id {EVIL}", file_name=f"clips/{EVIL}.mp4"))
        report.clip_failed(Clip(f"failed {EVIL}", f"its prompt {EVIL}"), "text", 3, f"line\nValueError: {EVIL}")
    elements = Elements(written(storage))
    assert "img" not in elements.tags
    assert elements.tags.count("script") == 1
    assert not [name for name, _ in elements.attributes if name.startswith("on")]
    for text in ("out", "prompt ", "id ", "failed ", "its prompt ", "lost: ", "shut out: ", "ValueError: "):
        assert f"{text}{EVIL}" in elements.text


def test_nothing_in_the_page_comes_from_elsewhere(storage, clock):
    storage.write("clips/aa/clip-1.mp4", b"video")
    with Report(storage, ABOUT, clock=clock) as report:
        report.clip_done(row(1))
    elements = Elements(written(storage))
    addresses = [value for name, value in elements.attributes if name in ("src", "href", "srcset", "data", "poster")]
    assert {address.partition(",")[0] for address in addresses} == {"clips/aa/clip-1.mp4", "data:video/mp4;base64"}
    assert "link" not in elements.tags
    [policy] = [value for name, value in elements.attributes if name == "content" and "default-src" in value]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy


def test_it_is_written_at_once_then_every_minute_and_at_the_end(storage, clock):
    with Report(storage, ABOUT, clock=clock) as report:
        states = []
        for seconds in (0, 59, 61, 100, 122):
            clock.now = BEGAN + seconds
            report.clip_failed(Clip(f"clip-{seconds}", "a prompt"), "text", 1, "ValueError: no")
            report._background.wait()
            states.append([f"clip-{second}" in written(storage) for second in (0, 59, 61, 100, 122)])
            assert "running" in written(storage)
    assert states == [
        [False, False, False, False, False],  # written when it began
        [False, False, False, False, False],
        [True, True, True, False, False],
        [True, True, True, False, False],
        [True, True, True, True, True],
    ]
    assert Elements(written(storage)).text.count("running") == 0


@pytest.mark.parametrize(
    ("error", "end", "state", "says"),
    [
        (None, {}, "done", ""),
        (None, {"interrupted": True}, "interrupted", "the same command goes on"),
        (None, {"stopped": "the first 20 clips failed"}, "stopped", "the first 20 clips failed"),
        (KeyboardInterrupt(), {}, "interrupted", "the same command goes on"),
        (UserError("storage is full"), {}, "failed", "storage is full"),
        (ValueError("a bug"), {}, "failed", "ValueError: a bug"),
    ],
)
def test_it_says_how_the_job_ended(storage, clock, error, end, state, says):
    def run() -> None:
        with Report(storage, ABOUT, clock=clock) as report:
            report.end(**end)
            if error is not None:
                raise error

    if error is None:
        run()
    else:
        with pytest.raises(type(error)):
            run()
    assert f'class="state {state}"' in written(storage)
    assert says in Elements(written(storage)).text


def test_a_job_that_lost_the_dataset_to_another_one_does_not_write_over_its_report(storage, clock):
    def run() -> None:
        with Report(storage, ABOUT, clock=clock) as report:
            report._background.wait()
            storage.write(REPORT, b"the other one's")
            raise LeaseError("another writer")

    with pytest.raises(LeaseError):
        run()
    assert written(storage) == "the other one's"


@pytest.mark.parametrize("url", ["memory://report/out", "local"])
def test_it_is_a_file_of_the_dataset_wherever_that_is(tmp_path, clock, url):
    storage = Storage.at(str(tmp_path) if url == "local" else url)
    with Report(storage, ABOUT, clock=clock) as report:
        report.clip_failed(Clip("clip-1", "a prompt"), "text", 1, "ValueError: no")
    assert set(storage.sizes("")) == {REPORT}
    assert written(storage).endswith("</html>")


def test_whoever_reads_it_meanwhile_finds_it_whole(storage, clock):
    found, over = set(), threading.Event()

    def read() -> None:
        while not over.is_set():
            found.add(written(storage).endswith("</html>"))

    with Report(storage, ABOUT, every=0, clock=clock) as report:
        report._background.wait()
        reader = threading.Thread(target=read)
        reader.start()
        for number in range(50):
            report.clip_failed(Clip(f"clip-{number}", "a prompt" * 100), "text", 1, "ValueError: no")
            report._background.wait()
        over.set()
        reader.join()
    assert found == {True}


def test_storage_that_fails_is_asked_again_and_then_told_once_while_the_job_goes_on(flaky, clock):
    storage, told = Storage.at("flaky://out", QUICK), list[str]()
    flaky.failures = 2
    with Report(storage, ABOUT, clock=clock, tell=told.append):
        pass
    before = written(storage)
    assert 'class="state done"' in before
    assert not told
    flaky.failures = 1000
    with Report(storage, ABOUT, clock=clock, tell=told.append) as report:
        for seconds in (0, 61, 122):
            clock.now = BEGAN + seconds
            report.clip_failed(Clip(f"clip-{seconds}", "a prompt"), "text", 1, "ValueError: no")
            report._background.wait()
    assert len(told) == 1
    assert len(told[0].splitlines()) == 1
    assert REPORT in told[0]
    assert told[0].endswith("; the job goes on")
    flaky.failures = 0
    assert written(storage) == before


def test_a_report_that_stumbles_over_what_it_is_told_costs_no_job(storage, clock):
    told: list[str] = []
    with Report(storage, ABOUT, clock=clock, tell=told.append) as report:
        report.batch_done(["a"], "a stage that is not there", 0, BEGAN, 1.0, 0.0)
        report.clip_done({"id": "a row without the rest"})
        report.clip_failed(Clip("clip-1", "a prompt"), "text", 1, "ValueError: no")
    assert len(told) == 1
    assert "clip-1" in written(storage), "the rest of it is told"


def test_an_error_of_the_job_is_not_hidden_by_storage_that_fails_too(flaky, clock):
    def run() -> None:
        with Report(Storage.at("flaky://out", QUICK), ABOUT, clock=clock):
            flaky.failures = 1000
            raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        run()


def test_a_hundred_thousand_clips_make_a_small_page(storage, clock):
    storage.write("clips/aa/clip-0.mp4", b"video")
    stations, batch = 100, 20
    sizes = []
    with Report(storage, replace(ABOUT, total=100_000), every=1e9, clock=clock) as report:
        for station in range(stations):
            report.station_up(station)
        for number in range(100_000 // batch):
            clock.now = BEGAN + number
            for stage, seconds in (("text", 0.3), ("keyframes", 0.5)):
                report.batch_done(["a"] * batch, stage, number % stations, clock.now - seconds, seconds, 0.1)
            report.batch_done(["a"] * batch, "land", None, clock.now, 0.1, 0.0)
            for clip in range(batch):
                report.clip_done(row(number * batch + clip, file_name="clips/aa/clip-0.mp4"))
            report.clip_failed(Clip(f"failed-{number}", "prompt " * 10_000), "text", 3, "trace\n" * 10_000)
            if number % 10 == 0:  # spot nodes that come and go
                report.station_lost(number % stations, "gone")
                report.station_up(number % stations)
            if number in (2499, 4999):
                report._background.submit(report._write)
                report._background.wait()
                sizes.append(storage.sizes("")[REPORT])
    html = written(storage)
    assert sizes[1] < 1.2 * sizes[0]
    assert len(html) < 3_000_000
    assert html.count('class="bar') <= BARS
    assert html.count("<video") == SHEET_CLIPS
    words = Elements(html).text
    assert "Clips done 100,000" in words
    assert "4,900 more: all of them are in failures/" in words
    assert f"{stations - LANES} more stations are not drawn" in words


def test_a_resumed_job_tells_what_is_there_in_all_and_what_it_did_itself():
    facts = Facts(replace(ABOUT, done_before=60, failed_before=2))
    facts.rendered = 30
    facts.clip_failed(Clip("clip-1", "a prompt"), "text", 3, "ValueError: no")
    facts.working([], an_hour=30.0, seconds_left=840.0)
    words = Elements(page(facts, BEGAN + 3600)).text
    assert "Clips done 90 of 100; 60 of them before this run" in words
    assert "Failed 3 2 of them before, and skipped" in words
    assert "Left 7" in words
    assert "Clips per hour 30.0" in words
    assert "about 14:00 more" in words


def test_the_stations_time_is_divided_between_stages_loading_and_waiting():
    facts = Facts(ABOUT)
    facts.station_up(0, BEGAN)
    facts.station_up(1, BEGAN)
    facts.batch_done(["a", "b"], "text", 0, BEGAN + 2, 2.0, 2.0, BEGAN + 4)
    facts.batch_done(["a", "b"], "keyframes", 1, BEGAN + 4, 6.0, 0.0, BEGAN + 10)
    facts.batch_done(["a", "b"], "land", None, BEGAN + 9, 1.0, 0.0, BEGAN + 10)
    now = BEGAN + 10
    assert facts.busy_share(now) == pytest.approx(0.4)
    rows = {stage.name: stage for stage in stage_rows(facts, facts.timeline.up_seconds(10))}
    assert {name: stage.share for name, stage in rows.items()} == {"text": 0.1, "keyframes": 0.3, "land": None}
    assert [(stage.batches, stage.mean, stage.loads) for stage in rows.values()] == [(1, 1, 1), (1, 3, 0), (1, 0.5, 0)]
    shares = facts.timeline.shares(10)
    first, second = (int(at / shares.width) for at in (1, 3))
    assert (shares.of(LOADING, first), shares.of("text", first)) == pytest.approx((0.5, 0))
    assert (shares.of(LOADING, second), shares.of("text", second)) == pytest.approx((0, 0.5))
    drawn = [[(bar.x, bar.width, bar.kind) for bar in lane.bars] for lane in picture(facts, 10).rows]
    assert drawn == [[(0, 20, "loading"), (20, 20, "s0")], [(40, 60, "s1")], [(90, 10, "s2")]]


def test_a_batch_that_runs_is_not_taken_for_idle_time():
    timeline = Timeline()
    timeline.station_up(0, 0.0)
    timeline.station_up(1, 0.0)
    timeline.batch("text", 0, 0.0, 10.0, 0.0, 4)
    timeline.working([0])
    assert timeline.up_seconds(30.0) == 10 + 30
    assert (timeline.known_until(0, 30.0), timeline.known_until(1, 30.0)) == (10, 30)
    timeline.working([])
    assert timeline.up_seconds(30.0) == 30 + 30


def test_percentiles_are_of_batches_and_of_seconds_a_clip():
    facts = Facts(ABOUT)
    for number in range(1, 101):
        facts.batch_done(["a", "b"], "text", 0, BEGAN, 2.0 * number, 0.0, BEGAN + 300)
    [text] = stage_rows(facts, 1e6)
    assert (text.p50, text.p95, text.mean, text.batch_size) == (50, 95, 50.5, 2)


def test_a_station_that_replaces_a_lost_one_goes_on_in_its_row():
    facts = Facts(ABOUT)
    for station in (0, 1):
        facts.station_up(station, BEGAN)
    facts.station_lost(0, "its node went away", BEGAN + 10)
    facts.station_up(2, BEGAN + 15)
    facts.batch_done(["a"], "text", 2, BEGAN + 16, 4.0, 0.0, BEGAN + 20)
    facts.station_ended(1, BEGAN + 18)
    first, second = picture(facts, 20).rows
    assert (first.name, second.name) == ("0, 2", "1")
    assert [(up.x, up.width, up.kind) for up in first.up] == [(0, 50, "lost"), (75, 25, "up")]
    assert [(up.x, up.width, up.kind) for up in second.up] == [(0, 90, "up")]
    assert [bar.x for bar in first.bars] == [80]
    assert facts.timeline.up_seconds(20) == 10 + 18 + 5
    [lost] = facts.lost
    assert (lost.station, lost.at, lost.reason) == (0, 10, "its node went away")


def test_bars_that_are_joined_keep_everything_that_they_stand_for():
    timeline = Timeline()
    timeline.station_up(0, 0.0)
    count = 4 * BARS
    for number in range(count):
        timeline.batch("text" if number % 3 else "keyframes", 0, number, number + 0.5, 0.0, 2)
    bars = timeline.gantt.drawn(timeline.gantt.lanes[0])
    assert BARS / 8 < len(bars) <= BARS
    assert sum(bar.clips for bar in bars) == 2 * count
    assert sum(bar.batches for bar in bars) == count
    assert sum(sum(bar.seconds.values()) for bar in bars) == pytest.approx(count / 2)
    assert all(one.end <= other.begin for one, other in pairwise(bars))
    shares = timeline.shares(count)
    assert BINS / 2 <= count / shares.width <= BINS
    assert shares.of("text", 7) + shares.of("keyframes", 7) == pytest.approx(0.5, abs=0.02)


def test_the_sheet_is_spread_evenly_over_however_many_clips_there_are():
    sheet = Sheet()
    for number in range(10_000):
        if sheet.wants_next():
            sheet.add(Shown(row(number), b""))
    seeds = [clip.row["seed"] for clip in sheet.clips()]
    assert len(seeds) == SHEET_CLIPS
    assert seeds[0] == 0
    gaps = [other - one for one, other in zip(seeds, [*seeds[1:], 10_000], strict=True)]
    assert max(gaps) <= 2 * min(gaps)


def test_large_clips_are_linked_and_all_of_the_page_is_bounded(storage, clock):
    for number in range(10):
        storage.write(f"clips/aa/clip-{number}.mp4", bytes(1_900_000))
    with Report(storage, ABOUT, clock=clock) as report:
        for number in range(10):
            report.clip_done(row(number, bytes=1_900_000))
        report.clip_done(row(10, bytes=2_100_000, file_name="clips/aa/a clip.mp4"))
    html = written(storage)
    assert html.count("<video") == 12_000_000 // 1_900_000
    assert 'href="clips/aa/a%20clip.mp4"' in html
    assert len(html) < 17_000_000


def test_clips_that_went_into_shards_are_in_the_sheet(job, clock):
    with job.open(format="webdataset", settings=SETTINGS) as dataset:
        with Report(dataset.lander.storage, replace(ABOUT, format="webdataset"), clock=clock) as report:
            for entry in entries(6):
                report.clip_done(land(dataset, entry))
                report._background.wait()
        dataset.finish()
    storage = Storage.at(job.url)
    assert not storage.folders("clips") or not any(storage.sizes(f"clips/{name}") for name in storage.folders("clips"))
    elements = Elements(written(storage))
    assert elements.tags.count("video") == 6
    assert not [value for name, value in elements.attributes if name == "href"]


@pytest.mark.parametrize(
    ("seconds", "labels", "unit"),
    [
        (4, ["0:00", "0:01", "0:02", "0:03", "0:04"], "minutes:seconds"),
        (100, ["0:00", "0:30", "1:00", "1:30"], "minutes:seconds"),
        (600, ["0", "2", "4", "6", "8", "10"], "minutes"),
        (36_000 * 10, ["0", "1,000", "2,000", "3,000", "4,000", "5,000", "6,000"], "minutes"),
    ],
)
def test_the_time_axis_has_few_round_labels(seconds, labels, unit):
    ticks, said = time_axis(seconds)
    assert ([label for _, label in ticks], said) == (labels, unit)


# In a browser, of a real job.


@pytest.fixture(scope="module")
def rendered(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a job that rendered six clips, one of them with a prompt that is not nice."""
    from show1_ray import render

    folder = tmp_path_factory.mktemp("report")
    prompts = [EVIL, *(f"a red circle, number {number}" for number in range(5))]
    pq.write_table(pa.table({"prompt": prompts}), folder / "prompts.parquet")
    with own_ray(2):
        summary = render(str(folder / "prompts.parquet"), str(folder / "out"), str(tiny), gpus=1)
    assert summary.rendered == 6
    return folder / "out" / REPORT


@pytest.fixture
def opened(browser: Any, rendered: Path) -> Iterator[Any]:
    """Opens the report without a network; the page has `requests`, `refused` and `complaints`."""
    context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    tab.set_default_timeout(120_000)
    tab.requests, tab.refused, tab.complaints = [], [], []
    tab.on("request", lambda request: tab.requests.append(request.url))
    tab.on("requestfailed", lambda request: tab.refused.append(request.failure))
    tab.on("console", lambda message: tab.complaints.append(message.text))
    tab.on("pageerror", lambda error: tab.complaints.append(str(error)))
    tab.goto(rendered.as_uri())
    yield tab
    context.close()


def test_the_report_of_a_real_job_tells_what_it_did(rendered):
    words = Elements(rendered.read_text()).text
    assert read_status(str(rendered.parent)).done == 6
    assert "Clips done 6 of 6" in words
    assert "Failed 0 Left 0" in words
    assert 'class="state done"' in rendered.read_text()
    busy = re.search(r"Busy share ([\d.]+)%", words)
    assert busy
    assert 5 < float(busy[1]) <= 100


def test_in_a_browser_the_clips_play(opened):
    opened.click("#play")
    opened.wait_for_function("[...document.querySelectorAll('video')].every(video => video.currentTime > 0)")
    widths = opened.evaluate("[...document.querySelectorAll('video')].map(video => video.videoWidth)")
    assert widths == [36] * 6


def test_in_a_browser_every_stage_has_bars_and_the_prompt_is_text(opened):
    names = ["text", "keyframes", "interpolation", "super_resolution", "latent_super_resolution", "land"]
    titles = opened.locator(".bar title").all_text_contents()
    assert {title.splitlines()[0].partition(",")[0] for title in titles} == {*names, "loading"}
    lanes = opened.evaluate("[...document.querySelectorAll('.lane')].map(lane => lane.getAttribute('aria-label'))")
    assert lanes == ["station 0", "CPU"]
    inside = """[...document.querySelectorAll('.bar')].every(bar => {
        const [one, lane] = [bar, bar.closest('svg')].map(element => element.getBoundingClientRect());
        return one.width > 0 && one.left >= lane.left - 1 && one.right <= lane.right + 1;
    })"""
    assert opened.evaluate(inside)
    assert opened.locator(".legend li").all_text_contents() == [*names, "loading weights", "idle"]
    assert opened.locator(".prompt", has_text=EVIL).count() == 1
    assert opened.locator("img").count() == 0


@pytest.mark.parametrize("width", [360, 768, 1090, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser_it_fits_the_window(opened, width, scheme):
    opened.set_viewport_size({"width": width, "height": 800})
    opened.emulate_media(color_scheme=scheme)
    assert opened.evaluate("document.documentElement.scrollWidth") == width
    beyond = """[...document.querySelectorAll('h1, .tiles dd, .plots, video, button')]
        .filter(element => element.getBoundingClientRect().right > innerWidth).length"""
    assert opened.evaluate(beyond) == 0
    colours = "(style => [style.color, style.backgroundColor])(getComputedStyle(document.body))"
    ink, paper = (sum(map(int, re.findall(r"\d+", colour))) for colour in opened.evaluate(colours))
    assert (ink < paper) == (scheme == "light")


def test_in_a_browser_it_asks_for_nothing_and_has_no_complaints(opened, rendered):
    opened.click("#play")
    opened.wait_for_function("document.querySelector('video').currentTime > 0")
    assert [url for url in opened.requests if not url.startswith("data:")] == [rendered.as_uri()]
    assert opened.complaints == []


def test_in_a_browser_nothing_that_gets_into_the_page_can_run_or_call_home(opened):
    opened.evaluate("""() => {
        const script = document.createElement('script');
        script.textContent = 'document.title = "run"';
        document.body.append(script);
        const image = document.createElement('img');
        image.src = 'https://example.com/x.png';
        document.body.append(image);
        document.body.insertAdjacentHTML('beforeend', '<b onclick="document.title = \\'run\\'" id="evil">x</b>');
    }""")
    opened.evaluate("document.querySelector('#evil').click()")
    assert opened.title().startswith("done: ")
    assert sum("Content Security Policy" in complaint for complaint in opened.complaints) >= 3
    assert opened.refused == ["csp"]
