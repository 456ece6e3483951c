// The document as a bar of cells. A cell is a section, or several where there are many.

import { button, element, setText } from "./elements.js";
import { plural } from "./words.js";

const MOST_CELLS = 80;

/** Sections of a cell: 1, 2, 5, 10, 20, … */
export function span(sections) {
  for (let unit = 1; ; unit *= 10) {
    for (const size of [unit, 2 * unit, 5 * unit]) if (sections <= size * MOST_CELLS) return size;
  }
}

export class Bar {
  /** `choose(section)` is called when a section is chosen in the bar. */
  constructor(sections, choose) {
    this.sections = sections;
    this.choose = choose;
    this.sources = new Set(); // sections with a source of the answer
    this.size = 1;
    this.cells = [];
    this.changed = new Set(); // cells to draw
    this.chosen = 0;
    this.element = element("div", { class: "bar", role: "toolbar", keydown: (event) => this.moved(event),
      "aria-label": "The document as a bar of sections. Left and right arrow keys move between sections, up and down between cells." });
  }

  /** A section was read. */
  read(number) {
    const all = Math.max(this.sections.total ?? 0, this.sections.highest), size = span(all), count = Math.ceil(all / size);
    const hadFocus = this.element.contains(document.activeElement);
    if (size !== this.size) {
      this.size = size;
      this.cells = [];
      this.element.replaceChildren();
      for (const one of this.sections.read.keys()) this.count(one);
    } else {
      this.count(number);
    }
    while (this.cells.length > count) this.cells.pop().button?.remove();
    for (let i = 0; i < count; i++) this.cell(i);
    if (hadFocus && !this.element.contains(document.activeElement)) this.focus();
  }

  count(number) {
    const one = this.sections.read.get(number), cell = this.cell(this.index(number));
    cell.read++;
    cell.added += one.added;
    cell.dropped += one.dropped;
    this.changed.add(this.index(number));
  }

  index(number) {
    return Math.floor((number - 1) / this.size);
  }

  cell(i) {
    if (!this.cells[i]) {
      this.cells[i] = { read: 0, added: 0, dropped: 0, button: null };
      this.changed.add(i);
    }
    return this.cells[i];
  }

  mark(sources) {
    this.sources = new Set(sources);
    this.redraw();
  }

  /** Marks the section that is shown. */
  show(number) {
    if (this.chosen) this.changed.add(this.index(this.chosen));
    this.chosen = number;
    this.changed.add(this.index(number));
  }

  redraw() {
    this.cells.forEach((_, i) => this.changed.add(i));
  }

  /** Draws what has changed. */
  draw() {
    for (const i of [...this.changed].sort((a, b) => a - b)) if (this.cells[i]) this.drawCell(i, this.cells[i]);
    this.changed.clear();
  }

  drawCell(i, cell) {
    const first = i * this.size + 1, last = Math.min(first + this.size - 1, Math.max(this.sections.total ?? 0, this.sections.highest));
    const isChosen = this.chosen >= first && this.chosen <= last;
    if (!cell.button) {
      cell.button = button("", () => this.pick(first, last), { class: "cell" });
      const next = this.cells.slice(i + 1).find((other) => other?.button);
      this.element.insertBefore(cell.button, next ? next.button : null);
    }
    const hasSource = [...this.sources].some((number) => number >= first && number <= last);
    const label = [
      first === last ? `Section ${first}` : `Sections ${first} to ${last}`,
      cell.read === 0 ? "not read" : cell.read <= last - first ? `${cell.read} read` : "",
      cell.added ? `${plural(cell.added, "word")} added` : "", cell.dropped ? `${plural(cell.dropped, "word")} dropped` : "",
      cell.read && !cell.added && !cell.dropped ? "memory unchanged" : "", hasSource ? "has a source of the answer" : "",
    ].filter(Boolean).join(", ");
    cell.button.className = ["cell", cell.read ? "read" : "unread", hasSource ? "source" : ""].filter(Boolean).join(" ");
    cell.button.setAttribute("aria-label", label);
    cell.button.title = label;
    cell.button.tabIndex = isChosen ? 0 : -1;
    cell.button.setAttribute("aria-disabled", cell.read === 0);
    if (isChosen) cell.button.setAttribute("aria-current", "true");
    else cell.button.removeAttribute("aria-current");
    setText(cell.button, hasSource ? "◆" : !cell.read ? "" : cell.added && cell.dropped ? "±" : cell.added ? "+" : cell.dropped ? "−" : "·");
  }

  /** The first section of a cell that was read; one with a source before the others. */
  pick(first, last) {
    const read = [];
    for (let number = first; number <= last; number++) if (this.sections.read.has(number)) read.push(number);
    const picked = read.find((number) => this.sources.has(number)) ?? read[0];
    if (picked) this.choose(picked);
  }

  moved(event) {
    const at = this.chosen, cell = this.size > 1 ? this.size : undefined;
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: cell && at - cell, ArrowDown: cell && at + cell,
      Home: 1, End: this.sections.highest }[event.key];
    if (to === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const within = Math.min(Math.max(to, 1), this.sections.highest);
    if (!this.sections.read.has(within)) return;
    this.choose(within);
    this.focus();
  }

  /** Moves the focus to the cell of the section that is shown. */
  focus() {
    this.draw();
    this.cells[this.index(this.chosen)]?.button?.focus();
  }
}
