"""The page of a run in a real Chromium."""

import time

import pytest

from pipeline.view.page import write_page
from tests.support.run_folders import EVIL, answer, episode, write_lines, write_run

OPENING_S = 2.0


@pytest.fixture
def opened(browser, tmp_path):
    """Opens the page of a run folder: the page and the seconds it took. At the end it has caused no trouble."""
    pages, trouble = [], []

    def open_page(folder, **options):
        write_page(folder, tmp_path / "page.html")
        page = browser.new_page(**options)
        page.set_default_timeout(5000)
        pages.append(page)
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("request", lambda request: trouble.append(request.url) if request.url != address else None)
        address = (tmp_path / "page.html").as_uri()
        begin = time.monotonic()
        page.goto(address)
        page.wait_for_selector("#compare > *:nth-child(2)")
        return page, time.monotonic() - begin

    yield open_page
    for page in pages:
        page.close()
    assert trouble == []


def test_200_episodes_of_64_sections_open_fast(opened, tmp_path):
    rows = {s: [episode(read=64, words=20, question=f"pet {s}") for _ in range(4)] for s in range(1, 51)}
    folder = write_run(tmp_path / "run", rows)
    page, seconds = min((opened(folder) for _ in range(3)), key=lambda one: one[1])  # the machine may be busy
    assert page.locator("#episodes .list li").count() == 200 and page.locator(".cell").count() == 65
    assert seconds < OPENING_S


def test_episodes_are_filtered_coloured_and_walked_through(opened, tmp_path):
    rows = {1: [episode(reward=0.0), episode(reward=1.0, task="values")], 9: [episode(reward=0.5, question="toy")]}
    page, _ = opened(write_run(tmp_path / "run", rows))

    def listed() -> int:
        return page.locator("#episodes .list li:visible").count()

    assert listed() == 3 and page.locator("#curves svg").count() >= 3
    for label, value, left in (("Reward", "right", 1), ("Reward", "between", 1), ("Reward", "all", 3)):
        page.get_by_label(label, exact=True).select_option(value)
        assert listed() == left
    page.get_by_label("Task").select_option("values")
    assert listed() == 1
    page.get_by_label("Task").select_option("all")
    page.get_by_label("From step").fill("2")
    assert listed() == 1
    page.locator("#episodes .list button:visible").click()
    assert page.locator("#episode h3").inner_text() == "toy"
    page.locator(".cell").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".panel h4").first.inner_text() == "Section 2 of 4"
    assert page.locator(".panel del").count() and page.locator(".panel ins").count()
    assert page.locator(".cell.needed.written").count() == 2 and page.locator(".held").count() == 2
    for mode, shade in (("advantage", ".more-5"), ("log-prob ratio", ".less-1"), ("weight version", ".version-1")):
        page.get_by_label(mode, exact=True).check()
        assert page.locator(f".panel .text {shade}").count()
    page.locator("#compare select").first.select_option("gained")
    assert page.locator("#compare .list").first.locator("li:visible").count() == 1
    assert page.locator("#compare .sides").first.locator("section").count() == 2


def test_markup_in_data_is_shown_as_text(opened, tmp_path):
    evil = episode(question=EVIL, task=EVIL, answer=EVIL, memories=[EVIL] * 4, sections=[EVIL] * 4, answers=[EVIL])
    folder = write_run(tmp_path / "<img src=x onerror=alert(1)>", {1: [evil]})
    write_lines(folder / "evaluation/before-RL/results.jsonl", [answer("a", 0, question=EVIL, set=EVIL)])
    write_lines(folder / "metrics.jsonl", [{"step": 1, "reward": 1, EVIL: 1}])
    page, _ = opened(folder, color_scheme="dark")
    assert page.locator("#episode h3").text_content() == EVIL
    assert page.locator("#name").text_content() == folder.name and page.title() == f"{folder.name}: run"
    assert page.locator("img").count() == 0


def test_a_run_without_anything_opens(opened, tmp_path):
    (tmp_path / "run").mkdir()
    page, _ = opened(tmp_path / "run")
    assert "No episode was sampled yet" in page.locator("#episodes").inner_text()
