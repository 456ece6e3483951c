// A question: its reading, section by section, and its answer.

import { ApiError, inWords, json } from "./api.js";
import { answerView } from "./answer.js";
import { Bar } from "./bar.js";
import { button, element, focusOn, isolated, say, setText } from "./elements.js";
import { memoryView } from "./memory.js";
import { Sections } from "./sections.js";
import { follow } from "./stream.js";
import { duration } from "./words.js";

const DRAW_MS = matchMedia("(prefers-reduced-motion: reduce)").matches ? 1000 : 150;
const SAY_MS = 60_000; // between two announcements of the progress
const MOST_FOLDED = 1e6; // characters of memories that are held of an earlier question

export class Turn {
  /** `question`, `files` ([{id, name}]); `changed()` is called when its id or its end is known. */
  constructor(question, files, changed, refused) {
    Object.assign(this, { question, files, changed, refused, id: null, error: null, status: "new", shown: 0, isFollowing: true });
    this.sections = new Sections();
    this.bar = new Bar(this.sections, (number) => this.choose(number));
    this.words = new Set();
    this.said = 0;
    this.partial = "";
    this.title = element("h2", { dir: "auto" }, question);
    this.state = element("p", { class: "state" }, "Sending the question…");
    this.progress = element("progress", { "aria-label": "Progress of the reading" });
    this.stopButton = button("Stop and answer now", () => this.stop(), { disabled: true });
    this.cancelButton = button("Cancel", () => this.cancel(), { disabled: true });
    this.controls = element("div", { class: "row" }, this.stopButton, this.cancelButton);
    this.trouble = element("div", { class: "trouble", role: "alert" });
    this.written = element("p", { class: "text answer", dir: "auto", hidden: true });
    this.answer = element("div", { class: "answered" });
    this.following = element("input", { type: "checkbox", change: () => this.followNewest() });
    this.following.checked = true;
    this.follower = element("label", {}, this.following, " Show the newest memory");
    this.number = element("input", { type: "number", min: 1, inputmode: "numeric",
      change: () => this.choose(Number(this.number.value), true) });
    this.memory = element("div", { class: "panel" });
    this.legend = element("p", { class: "note" }, "+ added, − dropped, ± both, · unchanged, ◆ source of the answer. A dashed cell is not read.");
    this.reading = element("details", { open: true, hidden: true }, element("summary", {}, "The reading"),
      this.bar.element, this.legend,
      element("div", { class: "row" }, button("Previous", () => this.step(-1)), button("Next", () => this.step(1)),
        element("label", {}, "Section ", this.number), this.follower),
      this.memory);
    this.element = element("article", { class: "turn" }, this.title,
      element("p", { class: "note" }, files.length ? ["About ", files.map((file, i) => [i ? ", " : "", isolated(file.name)])] : ""),
      this.state, this.progress, this.controls, this.trouble, this.written, this.answer, this.reading);
  }

  get isOver() {
    return !["new", "queued", "in_progress"].includes(this.status);
  }

  /** Follows the reading to its end. `asked` is `{body}` or `{id}` (stream.js). */
  async run(asked) {
    try {
      await follow(asked, (event) => this.on(event), (seconds) => {
        this.sections.pause();
        setText(this.state, seconds === null ? "The server does not hold these sections any more. The answer is shown when it is there."
          : `The connection was lost. The reading continues on the server; trying again in ${seconds} s.`);
      });
    } catch (error) {
      this.error = error;
      this.end("failed");
      setText(this.trouble, inWords("There is no answer", error));
      this.refused(error);
    }
  }

  on(event) {
    const { type, response, item } = event;
    if (response) this.id ??= response.id;
    if (type === "response.output_item.done" && item.type === "reasoning" && item.palimpsest) return this.readOne(item.palimpsest);
    if (type === "response.output_text.delta") return this.write(event.delta);
    if (type === "response.queued") return this.begin("queued", "Waiting for its turn.");
    if (type === "response.created" || type === "response.in_progress") return this.begin("in_progress", "Reading the first section…");
    if (type === "response.completed" || type === "response.incomplete") return this.answered(response);
    if (type === "response.cancelled") {
      this.end("cancelled");
      return setText(this.state, "Cancelled: there is no answer.");
    }
    if (type === "response.failed") {
      this.end("failed");
      setText(this.trouble, inWords("There is no answer", new ApiError(500, response.error?.message || "the reading failed")));
    }
  }

  begin(status, text) {
    const isNew = this.status === "new";
    this.status = status;
    this.stopButton.disabled = this.cancelButton.disabled = false;
    if (!this.sections.latest) setText(this.state, text);
    if (status === "in_progress") this.sections.pause();
    if (isNew) this.changed();
  }

  readOne(section) {
    this.sections.add(section);
    this.bar.read(section.section);
    this.reading.hidden = false;
    if (this.isFollowing) this.show(section.section);
    this.drawSoon();
  }

  write(text) {
    this.partial += text;
    this.written.hidden = false;
    this.drawSoon();
  }

  drawSoon() {
    this.timer ??= setTimeout(() => this.draw(), DRAW_MS);
  }

  draw() {
    clearTimeout(this.timer);
    this.timer = null;
    this.bar.draw();
    if (this.shown !== this.drawn) {
      this.drawn = this.shown;
      this.memory.replaceChildren(...memoryView(this.sections, this.shown, (number) => this.choose(number), this.words));
      if (document.activeElement !== this.number) this.number.value = this.shown;
    }
    if (this.isOver) return;
    setText(this.written, this.partial);
    const text = this.progressText();
    setText(this.state, text);
    if (performance.now() - this.said > SAY_MS) {
      this.said = performance.now();
      say(text);
    }
  }

  progressText() {
    const { total, isEstimate, read, left } = this.sections, speed = this.sections.speed();
    if (total !== null) {
      this.progress.max = Math.max(total, 1);
      this.progress.value = read.size;
    }
    if (this.partial) return `Read ${read.size} sections; the answer is being written.`;
    const parts = [`Section ${read.size}${total === null ? "" : ` of ${isEstimate ? "about " : ""}${total}`}`];
    if (speed) {
      parts.push(speed.sections >= 1 ? `${speed.sections.toFixed(1)} sections/s` : `${duration(1 / speed.sections)} per section`,
        `${Math.round(speed.tokens).toLocaleString("en")} tokens/s`);
    }
    if (this.isStopped) parts.push("stopping: the section being read is finished, then the question is answered");
    else if (speed && left !== null) parts.push(`${isEstimate ? "about " : ""}${duration(left / speed.sections)} left`);
    return `${parts.join(" · ")}.`;
  }

  /** Shows the memory after a section, until another is chosen. */
  choose(number, isTyped = false) {
    if (!this.sections.read.has(number)) {
      if (isTyped) this.number.value = this.shown;
      return;
    }
    this.isFollowing = this.following.checked = false;
    this.show(number);
    this.draw();
  }

  step(by) {
    this.choose(this.shown + by);
  }

  show(number) {
    this.shown = number;
    this.bar.show(number);
  }

  followNewest() {
    this.isFollowing = this.following.checked;
    if (this.isFollowing) this.show(this.sections.latest);
    this.draw();
  }

  async stop() {
    this.isStopped = true;
    this.stopButton.disabled = true;
    this.cancelButton.focus();
    await this.tell("stop", () => { this.isStopped = this.stopButton.disabled = false; });
    if (!this.isOver) this.drawSoon();
  }

  async cancel() {
    this.stopButton.disabled = this.cancelButton.disabled = true;
    focusOn(this.title);
    await this.tell("cancel", () => { this.stopButton.disabled = this.cancelButton.disabled = false; });
  }

  async tell(what, undo) {
    setText(this.trouble, "");
    try {
      await json("POST", `v1/responses/${encodeURIComponent(this.id)}/${what}`);
    } catch (error) {
      if (this.isOver) return;
      undo();
      setText(this.trouble, inWords(`The server refused to ${what}`, error));
      this.refused(error);
    }
  }

  /** Shows the answer of a response that is over. */
  answered(response) {
    const of = response.palimpsest, hasSections = this.sections.read.size > 0;
    const go = (number) => {
      this.reading.open = true;
      this.choose(number);
      this.bar.focus();
      this.reading.scrollIntoView({ block: "nearest" });
    };
    this.answer.replaceChildren(...answerView(response, hasSections ? go : null));
    this.words = new Set(of.sources.flatMap((source) => source.words));
    this.bar.mark(of.sources.map((source) => source.section));
    this.drawn = null;
    const hadFocus = this.controls.contains(document.activeElement);
    this.end(response.status);
    if (hadFocus) focusOn(this.answer.querySelector("h3"));
    say(`Answer: ${of.answer.slice(0, 300)}`);
  }

  end(status) {
    const hadFocus = this.controls.contains(document.activeElement);
    this.status = status;
    this.controls.hidden = this.progress.hidden = this.written.hidden = this.follower.hidden = true;
    this.isFollowing = false;
    setText(this.state, "");
    if (hadFocus) focusOn(this.title);
    this.draw();
    this.changed();
  }

  /** Closes the reading of an earlier question, and drops most of its memories. */
  fold() {
    this.reading.open = false;
    this.sections.fit(MOST_FOLDED);
  }
}
