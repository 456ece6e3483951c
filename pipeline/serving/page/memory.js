// The memory after one section, with what was added and dropped.

import { button, element, isolated } from "./elements.js";
import { partsWith, placeText, plural } from "./words.js";

const MOST_SHOWN = 50_000; // characters of a memory that are drawn
const TAGS = { kept: "span", added: "ins", dropped: "del" };

/** The head and the text of a section's memory. `go(section)` shows another one; `words` are marked. */
export function memoryView(sections, number, go, words = new Set()) {
  const one = sections.read.get(number);
  if (!one) return [element("p", { class: "note" }, "No section was read yet.")];
  const changes = [one.added ? `${plural(one.added, "word")} added` : "", one.dropped ? `${plural(one.dropped, "word")} dropped` : ""];
  const of = sections.total === null ? "" : ` of ${sections.isEstimate ? "about " : ""}${sections.total}`;
  const head = [
    element("h4", {}, `Memory after section ${number}${of}`),
    element("p", { class: "note" }, "The section begins at ", isolated(placeText(one.place)), ". ",
      changes.filter(Boolean).join(", ") || "The memory did not change", ".",
      one.isCut ? " The memory reached its limit and is cut off." : ""),
  ];
  if (!one.parts) {
    const near = sections.nearestHeld(number);
    return [...head, element("p", { class: "note" }, "This page dropped this memory to stay small. ",
      near === null ? "" : button(`Show that of section ${near}`, () => go(near)))];
  }
  let left = MOST_SHOWN;
  const shown = [];
  for (const [kind, text] of one.parts) {
    if (left <= 0) break;
    const part = text.slice(0, left);
    left -= part.length;
    shown.push(element(TAGS[kind], {}, kind === "dropped" ? part : markedWords(part, words)));
  }
  return [...head,
    element("p", { class: "text memory", dir: "auto" }, shown.length ? shown : element("em", {}, "The memory is empty.")),
    left <= 0 ? element("p", { class: "note" }, "The rest is too long to be shown.") : ""].filter(Boolean);
}

/** A text with some words marked. */
export function markedWords(text, words) {
  if (!words.size) return [text];
  return partsWith(text, words).map(([part, word]) => (word === null ? part : element("mark", {}, part)));
}
