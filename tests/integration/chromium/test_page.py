"""The page of jobs.serve in a real Chromium, with a real server and a scripted model."""

import re

import pytest

from tests.support.chromium import REFUSED
from tests.support.serving_page import LINES, add, answer, ask

expect = pytest.importorskip("playwright.sync_api", reason="no Playwright (`make browser`)").expect
EVIL = (
    "</p><script>alert(1)</script><img src=x onerror=alert(2)><style>*{display:none}</style>"
    " javascript:alert(3) &lt;b&gt; {{7*7}} \u202eenod\u202c \u05d0\u05d1\u05d2 \u0627\u0644 e\u0301 \ufeff \U0001f9d9"
)


def test_a_reading_from_the_upload_to_the_passage(opened, server):
    page = opened()
    add(page, "".join(LINES))
    expect(page.locator("#about")).to_have_text("About letters.txt.")
    server.hold_after(3)
    ask(page, "Where is the end?")
    expect(page.locator(".cell.read")).to_have_count(3)
    expect(page.locator(".turn .state")).to_contain_text(re.compile(r"^Section 3 of (about )?5"))
    assert page.locator(".cell.read").all_inner_texts() == ["+", "·", "+"] and page.locator(".cell.unread").count() == 2
    expect(page.locator(".memory")).to_contain_text("The door is red. The cat is blue.")
    assert page.locator(".memory ins").all_inner_texts() == [" The cat is blue."]
    page.locator(".cell").first.click()
    expect(page.locator(".panel h4")).to_contain_text("Memory after section 1 of")
    expect(page.locator(".panel .note")).to_contain_text("letters.txt, line 1. 4 words added.")
    server.release()
    expect(answer(page)).to_have_text("near")
    expect(page.locator(".panel h4")).to_have_text("Memory after section 1 of 5")  # the choice stays
    page.get_by_role("button", name="near: show where it comes from").click()
    passage = page.locator(".passage.pointed")
    expect(passage).to_be_focused()
    expect(passage).to_contain_text("letters.txt, line 5")
    assert passage.locator("blockquote").inner_text() == "The end is near."
    passage.get_by_role("button", name="Show section 5").click()
    expect(page.locator(".cell[aria-current]")).to_be_focused()
    expect(page.locator(".panel h4")).to_have_text("Memory after section 5 of 5")
    assert page.locator(".cell.source").inner_text() == "◆"
    assert "has a source of the answer" in page.locator(".cell.source").get_attribute("aria-label")
    assert page.locator("#said").text_content() == "Answer: near"


def test_what_was_dropped_is_marked(opened, server):
    server.model.forget = True
    page = opened()
    add(page, "".join(LINES))
    ask(page)
    expect(answer(page)).to_have_text("near")
    assert page.locator(".cell").nth(2).inner_text() == "±"
    page.locator(".cell").nth(2).click()
    assert page.locator(".memory del").all_inner_texts() == [" door", " red."]
    assert page.locator(".memory ins").all_inner_texts() == [" cat", " blue."]
    decorations = {
        tag: page.locator(f".memory {tag}").first.evaluate("e => getComputedStyle(e).textDecorationLine")
        for tag in ("ins", "del")
    }
    assert decorations == {"ins": "underline", "del": "line-through"}


def test_a_reading_is_stopped_and_answered(opened, server):
    page = opened()
    add(page, "".join(LINES))
    server.hold_after(2)
    ask(page)
    expect(page.locator(".cell.read")).to_have_count(2)
    with page.expect_response(lambda response: response.url.endswith("/stop")):
        page.get_by_role("button", name="Stop and answer now").click()
    expect(page.get_by_role("button", name="Cancel")).to_be_focused()
    expect(page.locator(".turn .state")).to_contain_text("stopping")
    server.release()
    expect(answer(page)).to_have_text("blue")
    expect(page.locator(".limit")).to_have_text("From the first 3 sections only: the reading was stopped.")
    expect(page.locator(".answered h3").first).to_be_focused()  # the button with the focus is gone


def test_a_reading_is_cancelled_and_another_asked(opened, server):
    page = opened()
    add(page, "".join(LINES))
    server.hold_after(1)
    ask(page)
    expect(page.locator(".cell.read")).to_have_count(1)
    assert page.locator("#send").is_disabled()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".turn .state")).to_have_text("Cancelled: there is no answer.")
    server.release()
    ask(page)
    expect(answer(page)).to_have_text("near")


def test_a_follow_up_asks_the_same_documents(opened, server):
    page = opened()
    add(page, "".join(LINES))
    ask(page, "first")
    expect(answer(page)).to_have_text("near")
    expect(page.locator("#ask-title")).to_have_text("Follow-up question")
    with page.expect_request("**/v1/responses") as sent:
        ask(page, "second")
    body = sent.value.post_data_json
    assert body["previous_response_id"] and [part["type"] for part in body["input"][0]["content"]] == ["input_text"]
    expect(page.locator(".turn")).to_have_count(2)
    expect(answer(page)).to_have_text("near")
    assert server.model.asked[-1]["problem"] == "second"
    assert page.locator(".turn details:has(.bar)").first.get_attribute("open") is None
    add(page, "The sky is wide.\n", "sky.txt")
    expect(page.locator("#about")).to_have_text("About letters.txt, sky.txt.")
    page.locator("#files li").filter(has_text="letters.txt").locator("input").uncheck()
    with page.expect_request("**/v1/responses") as sent:
        ask(page, "third")
    assert "previous_response_id" not in sent.value.post_data_json
    expect(answer(page)).to_have_text("wide")


def test_a_method_without_sections(opened):
    page = opened()
    add(page, "".join(LINES))
    page.select_option("#model", index=1)
    assert page.input_value("#model").endswith(":direct")
    ask(page)
    expect(answer(page)).to_have_text("near")
    assert page.locator(".passage blockquote").inner_text() == "The end is near."
    assert page.locator(".passage button").count() == 0 and not page.locator(".bar").is_visible()


def test_the_key_leaves_the_address_and_a_wrong_one_is_asked_for(opened, server):
    page = opened("pal-wrong", allow=(REFUSED,))
    expect(page.locator("#key-trouble")).to_contain_text("The server refused this key")
    expect(page.locator("#key")).to_be_focused()
    assert page.url == server.address and not page.locator("#documents").is_visible()
    page.fill("#key", "pal-\u2028\u00e9")
    page.keyboard.press("Enter")
    expect(page.locator("#key-trouble")).to_contain_text("characters that no key has")
    page.fill("#key", server.key)
    page.keyboard.press("Enter")
    expect(page.locator("#documents")).to_be_visible()
    assert not page.locator("#key-form").is_visible()
    assert page.evaluate("history.length") <= 2 and server.key not in page.content()


def test_too_many_readings_are_refused_with_the_time_to_try_again(opened, server):
    other, page = opened(), opened(allow=(REFUSED,))
    add(other, "".join(LINES))
    server.hold_after(0)
    ask(other)
    expect(other.locator(".turn .state")).to_contain_text("Reading the first section")
    page.reload()
    page.get_by_label("letters.txt", exact=True).check()
    ask(page, "mine")
    expect(page.locator("#ask-trouble")).to_contain_text(
        re.compile(r"The question was not accepted: .*; try again in \d+ s\.")
    )
    expect(page.locator("#question")).to_have_value("mine")
    expect(page.locator("#question")).to_be_focused()
    server.release()
    expect(answer(other)).to_have_text("near")
    page.keyboard.press("Enter")
    expect(answer(page)).to_have_text("near")
    assert page.locator("#ask-trouble").inner_text() == ""


def test_a_lost_connection_is_resumed(opened, server):
    page = opened(allow=(REFUSED,))
    add(page, "".join(LINES))
    server.hold_after(3)
    server.drop_streams = 1
    with page.expect_request(lambda request: "starting_after=" in request.url):
        ask(page)
        expect(page.locator(".turn .state")).to_contain_text("The connection was lost")
    expect(page.locator(".cell.read")).to_have_count(3)
    server.release()
    expect(answer(page)).to_have_text("near")
    assert len(server.model.asked) == 6  # 5 sections and the answer: nothing was read twice


def test_a_page_that_is_loaded_again_shows_its_answers_and_continues_its_reading(opened, server):
    page = opened()
    add(page, "".join(LINES))
    ask(page, "first")
    expect(answer(page)).to_have_text("near")
    server.hold_after(2)
    ask(page, "second")
    expect(page.locator(".turn").last.locator(".cell.read")).to_have_count(2)
    page.reload()
    expect(page.locator(".turn h2")).to_have_text(["first", "second"])
    expect(page.locator(".turn").first.locator(".answered .answer")).to_have_text("near")
    expect(page.locator(".turn").last.locator(".cell.read")).to_have_count(2)
    server.release()
    expect(answer(page)).to_have_text("near")


def test_files_are_dropped(opened):
    page = opened()
    expect(page.locator("#documents")).to_be_visible()
    page.evaluate("""() => {
        const data = new DataTransfer();
        for (const name of ["a.txt", "b.md"]) data.items.add(new File([`In ${name}.`], name));
        const send = (type) => document.querySelector("h1").dispatchEvent(
            new DragEvent(type, { dataTransfer: data, bubbles: true, cancelable: true }));
        send("dragover");
        if (!document.querySelector("#drop.over")) throw new Error("the place for the files is not marked");
        send("drop");
    }""")
    expect(page.locator("#files bdi")).to_have_text(["a.txt", "b.md"])
    expect(page.locator("#files-note")).to_have_text("2 of 2 documents chosen for the next question.")
    assert page.locator("#uploads li, #drop.over").count() == 0


def test_a_file_that_the_server_refuses_is_named_with_the_reason(opened):
    page = opened(allow=(REFUSED,))
    expect(page.locator("#documents")).to_be_visible()
    page.set_input_files("#choose", {"name": "bad.pdf", "mimeType": "", "buffer": b"%PDF-1.7\n\xff\xfe broken"})
    expect(page.locator("#files-trouble")).to_contain_text(re.compile(r"^bad\.pdf was not added: .{10,}\.$"))
    add(page, "".join(LINES))
    assert page.locator("#files li").count() == 1 and page.locator("#files-trouble").inner_text() == ""


def test_sending_a_file_is_cancelled(opened):
    page = opened()
    page.route("**/v1/files", lambda route: None if route.request.method == "POST" else route.continue_())
    page.wait_for_selector("#documents:not([hidden])")
    page.set_input_files("#choose", [{"name": n, "mimeType": "", "buffer": b"x"} for n in ("a.txt", "b.txt")])
    expect(page.get_by_role("progressbar", name="Sending a.txt")).to_be_visible()
    page.get_by_role("button", name="Do not send b.txt").click()
    page.get_by_role("button", name="Do not send a.txt").click()
    expect(page.locator("#choose")).to_be_focused()
    assert page.locator("#uploads li").count() == 0
    page.unroute("**/v1/files")
    add(page, "".join(LINES))
    assert page.locator("#files li").count() == 1 and page.locator("#files-trouble").inner_text() == ""


def test_a_file_is_removed(opened):
    page = opened()
    add(page, "The sky is wide.\n", "sky.txt")
    add(page, "".join(LINES))
    page.get_by_role("button", name="Remove sky.txt").click()
    expect(page.locator("#files li")).to_have_count(1)
    expect(page.get_by_role("button", name="Remove letters.txt")).to_be_focused()
    page.get_by_role("button", name="Remove letters.txt").click()
    expect(page.locator("#files-note")).to_have_text("No document yet.")
    assert page.locator("#send").is_disabled()


def test_markup_in_a_document_its_name_and_a_question_is_shown_as_text(opened):
    page = opened()
    name = "<img src=x onerror=alert(4)> \u202etxt.txt"
    text = "".join(
        f"{part:<59}\n" for part in [EVIL[:59], EVIL[59:118], "The <b>end</b> is <script>.", "The end is near."]
    )
    add(page, text, name)
    assert page.locator("#files bdi").inner_text() == name
    ask(page, EVIL)
    expect(answer(page)).to_have_text("near")
    assert page.locator(".turn h2").text_content() == EVIL.strip()
    page.get_by_role("button", name="Show section").first.click()
    assert page.locator(".passage .place bdi").first.text_content().startswith(name)
    assert page.locator("img, main script, main style, b").count() == 0
    assert page.evaluate("getComputedStyle(document.body).display") == "block"


def test_markup_in_a_memory_and_an_answer_is_shown_as_text(opened, server):
    server.model.says = EVIL
    page = opened()
    add(page, "".join(LINES))
    ask(page)
    expect(page.locator(".memory")).to_have_text(EVIL)
    expect(page.locator(".answered .answer")).to_have_text(EVIL.strip())
    assert page.locator("img, main script, main style, b").count() == 0
    assert page.locator(".memory").evaluate("e => getComputedStyle(e).unicodeBidi") == "plaintext"


def test_everything_is_reached_by_the_keyboard(opened, server):
    page = opened(None)

    def tab_to(name: str) -> None:
        for _ in range(30):
            page.keyboard.press("Tab")
            focused = page.evaluate("document.activeElement.ariaLabel || document.activeElement.textContent || "
                                    "document.activeElement.id")  # fmt: skip
            if name in focused:
                outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert outline != "none", f"{name} has the focus and does not show it"
                return
        raise AssertionError(f"Tab does not reach {name}")

    expect(page.locator("#key")).to_be_focused()
    page.keyboard.type(server.key)
    page.keyboard.press("Enter")
    expect(page.locator("#documents")).to_be_visible()
    add(page, "".join(LINES))
    tab_to("question")
    page.keyboard.type("Which?")
    server.hold_after(3)
    page.keyboard.press("Enter")
    expect(page.locator(".cell.read")).to_have_count(3)
    expect(page.locator(".turn h2")).to_be_focused()
    tab_to("Section 3")
    for keys, section in ((["Home"], 1), (["ArrowRight", "ArrowRight"], 3), (["ArrowLeft"], 2), (["End"], 3)):
        for key in keys:
            page.keyboard.press(key)
        expect(page.locator(".panel h4")).to_contain_text(f"Memory after section {section} of")
        expect(page.locator(".cell[aria-current]")).to_be_focused()
    page.keyboard.press("Shift+Tab")  # the summary of the reading
    page.keyboard.press("Shift+Tab")  # Cancel
    page.keyboard.press("Shift+Tab")
    with page.expect_response(lambda response: response.url.endswith("/stop")):
        page.keyboard.press("Space")
    server.release()
    expect(answer(page)).to_have_text("blue")  # of the three sections that were read, and the one that was begun
    expect(page.locator(".answered h3").first).to_be_focused()
    tab_to("blue: show where it comes from")
    page.keyboard.press("Enter")
    expect(page.locator(".passage.pointed")).to_be_focused()
    tab_to("Show section 3")
    page.keyboard.press("Enter")
    expect(page.locator(".panel h4")).to_contain_text("Memory after section 3 of")
