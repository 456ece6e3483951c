// The answer, and the passages that it comes from.

import { button, element, isolated } from "./elements.js";
import { markedWords } from "./memory.js";
import { duration, partsWith, placeText, plural } from "./words.js";

/** The parts of the page for a response that is over. `go(section)` shows a section; null: it cannot be shown. */
export function answerView(response, go) {
  const of = response.palimpsest, text = textOf(response);
  const sources = of.sources.map((source, i) => sourceView(source, i, go));
  const holders = new Map(); // word -> the first source that has it
  of.sources.forEach((source, i) => source.words.forEach((word) => holders.has(word) || holders.set(word, i)));
  const follow = (i) => {
    sources.forEach((item, k) => item.classList.toggle("pointed", k === i));
    sources[i].setAttribute("tabindex", -1);
    sources[i].focus();
  };
  const facts = factsOf(of.answer, holders).map(([part, source]) => (source === null ? part
    : button(part, () => follow(source), { class: "fact", "aria-label": `${part}: show where it comes from` })));
  return [
    element("h3", { tabindex: -1 }, "Answer"),
    element("p", { class: "text answer", dir: "auto" }, of.answer ? facts : element("em", {}, "The answer is empty.")),
    ...limits(response).map((limit) => element("p", { class: "limit" }, limit)),
    [of.answer, `\\boxed{${of.answer}}`].includes(text.trim()) ? "" : element("details", {}, element("summary", {}, "The model's whole text"),
      element("p", { class: "text", dir: "auto" }, text)),
    element("h3", {}, "Where it comes from"),
    sources.length
      ? element("p", { class: "note" }, "Found by text match in what was read. Words of the answer with a source are underlined.")
      : element("p", { class: "note" }, "No passage was found that contains the answer's words."),
    element("ol", { class: "sources" }, sources),
    element("p", { class: "note" }, `${plural(of.sections, "section")} in ${duration(of.seconds)}, `
      + `${plural(of.prompt_tokens, "prompt token")} and ${plural(of.response_tokens, "response token")}.`),
  ].filter(Boolean);
}

/** The parts of an answer in order: [text, source], where neighbouring words of the same source are one part. */
function factsOf(answer, holders) {
  const facts = [];
  for (const [text, word] of partsWith(answer, holders)) {
    const source = word === null ? null : holders.get(word), last = facts[facts.length - 1], before = facts[facts.length - 2];
    if (source !== null && before?.[1] === source && last[1] === null && !last[0].trim()) {
      before[0] += last[0] + text;
      facts.pop();
    } else {
      facts.push([text, source]);
    }
  }
  return facts;
}

/** The whole text of the answer. */
export function textOf(response) {
  return (response.output || []).filter((item) => item.type === "message").flatMap((item) => item.content)
    .map((part) => part.text ?? "").join("");
}

function limits(response) {
  const of = response.palimpsest;
  return [
    response.status === "incomplete" ? "The answer reached its limit of tokens and is cut off." : "",
    of.unread_tokens ? `${plural(of.unread_tokens, "token")} of the document were not read: they do not fit the model's window.`
      : of.is_whole ? "" : `From the first ${plural(of.sections, "section")} only: the reading was stopped.`,
  ].filter(Boolean);
}

function sourceView(source, i, go) {
  const words = new Set(source.words);
  const where = source.passage === null ? `section ${source.section}, which begins at ` : "";
  return element("li", { class: "passage" },
    element("div", { class: "row" },
      element("p", { class: "place" }, where, isolated(placeText(source.place)), source.is_answer ? "" : " (a fact behind the answer)"),
      go ? button(`Show section ${source.section}`, () => go(source.section), { "aria-label": `Show section ${source.section}, of source ${i + 1}` }) : ""),
    source.passage === null
      ? element("p", { class: "note" }, "The memory noted “", isolated(source.words.slice(0, 8).join(", ")), "” here; the text does not contain it.")
      : element("blockquote", { class: "text", dir: "auto" }, markedWords(source.passage, words)));
}
