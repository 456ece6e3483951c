"""What the page of jobs.serve can bear, in a real Chromium: long documents, narrow windows, both colour schemes."""

import time

import pytest

from tests.support.chromium import REFUSED
from tests.support.serving_page import LINES, add, answer, ask

expect = pytest.importorskip("playwright.sync_api", reason="no Playwright (`make browser`)").expect
LONGEST_TASK_MS = 500
CONTRAST = 4.5  # WCAG AA


def test_2000_sections_stay_fast(opened, server):
    page = opened()
    page.evaluate("""() => { window.longest = 0; new PerformanceObserver((list) => {
        for (const task of list.getEntries()) window.longest = Math.max(window.longest, task.duration);
    }).observe({ type: "longtask" }); }""")
    add(
        page, "".join(f"{line:<59}\n" for i in range(2000) for line in [f"The n{i} is v{i}." if i % 3 else "Fog fell."])
    )
    ask(page)
    page.wait_for_selector(".answered .answer", timeout=240_000)
    assert page.locator(".cell").count() <= 80 and page.locator("*").count() < 1000
    begin = time.monotonic()
    page.locator(".cell").nth(30).click()
    expect(page.locator(".panel h4")).to_contain_text("of 2000")
    page.get_by_label("Section", exact=True).fill("1777")
    page.keyboard.press("Enter")
    expect(page.locator(".panel h4")).to_have_text("Memory after section 1777 of 2000")
    assert time.monotonic() - begin < 5
    page.locator(".cell[aria-current]").focus()
    for key, section in (("ArrowUp", 1727), ("ArrowRight", 1728), ("ArrowDown", 1778), ("Home", 1), ("End", 2000)):
        page.keyboard.press(key)  # a cell has 50 sections
        expect(page.locator(".panel h4")).to_have_text(f"Memory after section {section} of 2000")
        expect(page.locator(".cell[aria-current]")).to_be_focused()
    assert page.evaluate("window.longest") < LONGEST_TASK_MS


def test_a_long_reading_holds_memories_of_all_its_parts_and_no_more_than_fit(opened):
    held = opened().evaluate("""async () => {
        const { MOST_CHARACTERS, Sections } = await import("/page/sections.js"), sections = new Sections();
        let most = 0;
        for (let section = 1; section <= 10000; section++) {
            sections.add({ section, sections: 10000, is_estimate: true, is_cut: false, prompt_tokens: 1,
                response_tokens: 1, place: { file: "a", page: null, line: section },
                changes: [{ kind: "kept", text: "x".repeat(5000) }, { kind: "added", text: " y" }] });
            most = Math.max(most, sections.characters);
        }
        const held = [...sections.read].filter(([, one]) => one.parts).map(([number]) => number);
        return { held, counted: held.length * 5002, characters: sections.characters, all: sections.read.size,
            fits: most <= MOST_CHARACTERS, near: sections.nearestHeld(1) };
    }""")
    assert held["fits"] and held["counted"] == held["characters"] and held["all"] == 10_000
    assert set(range(9901, 10_001)) <= set(held["held"])
    assert all(any(start < n <= start + 100 for n in held["held"]) for start in range(0, 10_000, 100))
    assert held["near"] == held["held"][0] > 1


def test_the_bar_of_a_document_of_unknown_length_grows_and_keeps_the_focus(opened):
    cells = opened().evaluate("""async () => {
        const { Bar } = await import("/page/bar.js"), { Sections } = await import("/page/sections.js");
        const sections = new Sections(), bar = new Bar(sections, () => {}), cells = [];
        document.body.append(bar.element);
        for (let section = 1; section <= 1000; section++) {
            sections.add({ section, sections: null, is_estimate: true, is_cut: false, prompt_tokens: 1,
                response_tokens: 1, place: { file: "a", page: null, line: section }, changes: [] });
            bar.read(section);
            if (section === 7) bar.show(section);
            if (section === 7) bar.focus();
            bar.draw();
            if ([7, 80, 81, 161, 1000].includes(section)) {
                cells.push([bar.cells.length, bar.size, document.activeElement.getAttribute("aria-label")]);
            }
        }
        return cells;
    }""")
    assert [(count, size) for count, size, _ in cells] == [(7, 1), (80, 1), (41, 2), (33, 5), (50, 20)]
    assert [label.partition(",")[0] for *_, label in cells] == [
        "Section 7", "Section 7", "Sections 7 to 8", "Sections 6 to 10", "Sections 1 to 20",
    ]  # fmt: skip


def test_events_are_parsed_however_they_are_cut(opened):
    text = ": alive\n\nevent: a\ndata: 1\n\n"
    text += "event: b\r\ndata:\u2028\u00e9\U0001f9d9\r\ndata: x: y\r\n\r\nid: 4\n\ndata: cut"
    parsed = opened().evaluate(
        """async (text) => {
        const { eventsOf } = await import("/page/stream.js"), bytes = new TextEncoder().encode(text), all = [];
        for (const size of [1, 2, 3, 7, 1000]) {
            const body = new ReadableStream({ start(to) {
                for (let i = 0; i < bytes.length; i += size) to.enqueue(bytes.slice(i, i + size));
                to.close();
            } });
            const events = [];
            for await (const event of eventsOf(body)) events.push(event);
            all.push(events);
        }
        return all;
    }""",
        text,
    )
    assert parsed == [[["a", "1"], ["b", "\u2028\u00e9\U0001f9d9\nx: y"]]] * 5


def test_words_are_found_as_the_sources_name_them(opened):
    parts = opened().evaluate(
        """async ([text, words]) => {
        const { partsWith } = await import("/page/words.js");
        return partsWith(text, new Set(words));
    }""",
        [
            "The \uff32\uff25\uff24 door, 1,234.5 of 1,2. \u6211\u4eec\u5728\u5317\u4eac",
            ["red", "1,234.5", "\u5317\u4eac"],
        ],
    )
    assert [part for part, word in parts if word] == ["\uff32\uff25\uff24", "1,234.5", "\u5317\u4eac"]
    assert "".join(part for part, _ in parts).startswith("The \uff32\uff25\uff24 door, 1,234.5 of 1,2. \u6211")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_text_has_contrast_and_fits(opened, server, scheme, width):
    page = opened(allow=(REFUSED,), color_scheme=scheme, viewport={"width": width, "height": 800})
    server.model.forget = True
    add(page, "".join(LINES), "a-name-without-a-blank-" * 8 + ".txt")

    def check() -> None:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        low = page.evaluate(CONTRASTS, CONTRAST)
        assert low == []

    server.hold_after(3)
    ask(page, "Question-without-a-blank-" * 12)
    expect(page.locator(".cell.read")).to_have_count(3)
    check()
    server.release()
    expect(answer(page)).to_have_text("near")
    page.locator(".cell").nth(2).click()
    check()
    page.get_by_role("button", name="Change key").click()
    page.fill("#key", "pal-other")
    page.keyboard.press("Enter")
    expect(page.locator("#key-trouble")).not_to_be_empty()
    check()


# Texts whose contrast with what is behind them is too low: [text, ratio].
CONTRASTS = """(least) => {
  const rgba = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const behind = (place) => {
    for (let at = place; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] === 1) return colour;
      if (colour[3] !== 0) throw new Error("half transparent");
    }
    return [255, 255, 255, 1];
  };
  const low = [];
  for (const place of document.body.querySelectorAll("*")) {
    const own = [...place.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !place.checkVisibility() || ["OPTION", "NOSCRIPT"].includes(place.tagName)) continue;
    const [a, b] = [light(rgba(getComputedStyle(place).color)), light(behind(place))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < least) low.push([place.textContent.slice(0, 40), ratio]);
  }
  return low;
}"""
