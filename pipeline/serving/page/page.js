// The page: the key, the documents, the questions and their answers.

import { inWords, json, key, setKey, takeKeyFromAddress } from "./api.js";
import { byId, element, focusOn, setText } from "./elements.js";
import { Files } from "./files.js";
import { Turn } from "./turn.js";

const KEPT = "palimpsest.turns"; // questions of this tab, shown again after the page was loaded again
const MOST_KEPT = 20;
const METHODS = { direct: "as much at once as fits the window", concat: "each section for itself, then all notes" };

const turns = [];
let isRestoring = false;
const files = new Files(showAbout, refused);

function askForKey(text = "") {
  byId("key-form").hidden = false;
  setText(byId("key-trouble"), text);
  byId("key").focus();
}

/** What any refused request leads to: without a valid key, the key is asked for. */
function refused(error) {
  if (error.status === 401) askForKey(inWords("The server refused this key", error));
}

async function start() {
  try {
    const [models] = await Promise.all([json("GET", "v1/models"), files.load()]);
    showModels(models.data);
  } catch (error) {
    if (error.status === 401) return askForKey(inWords("The server refused this key", error));
    byId("start-again").hidden = false;
    return setText(byId("start-trouble"), inWords("This page cannot start", error));
  }
  setText(byId("key-trouble"), "");
  setText(byId("start-trouble"), "");
  byId("start-again").hidden = true;
  byId("key-form").hidden = true;
  for (const place of ["documents", "ask", "change-key"]) byId(place).hidden = false;
  if (!turns.length) showKept();
}

function showModels(models) {
  const select = byId("model"), before = select.value;
  select.replaceChildren(...models.map(({ id }) => {
    const method = METHODS[id.slice(id.lastIndexOf(":") + 1)];
    return element("option", { value: id }, method && id.includes(":") ? `${id} (${method})` : id);
  }));
  if (models.some(({ id }) => id === before)) select.value = before;
}

const current = () => turns[turns.length - 1];
const isReading = () => Boolean(current()) && !current().isOver;

/** The turn whose documents are asked again: the last answered one, if the same documents are chosen. */
function before() {
  const ids = (listed) => listed.map(({ id }) => id).sort().join();
  const last = [...turns].reverse().find((turn) => turn.status === "completed" || turn.status === "incomplete");
  return last && ids(last.files) === ids(files.chosen) ? last : null;
}

function showAbout() {
  const chosen = files.chosen, names = chosen.slice(0, 3).map(({ name }) => name).join(", ");
  const others = chosen.length > 3 ? ` and ${chosen.length - 3} others` : "";
  setText(byId("ask-title"), before() ? "Follow-up question" : "Question");
  setText(byId("about"), isReading() ? "A question can be asked when this reading is over."
    : !chosen.length ? "Add or choose a document first." : before() ? "About the same documents as before." : `About ${names}${others}.`);
  byId("send").disabled = isReading() || !chosen.length;
}

function addTurn(question, about) {
  turns.forEach((turn) => turn.fold());
  const turn = new Turn(question, about, () => {
    keep();
    showAbout();
  }, refused);
  turns.push(turn);
  byId("turns").append(turn.element);
  return turn;
}

function ask() {
  const question = byId("question").value.trim();
  if (!question || byId("send").disabled) return byId("question").focus();
  const previous = before(), text = { type: "input_text", text: question };
  const parts = previous ? [text] : [...files.chosen.map(({ id }) => ({ type: "input_file", file_id: id })), text];
  const body = { model: byId("model").value, stream: true, background: true, input: [{ role: "user", content: parts }] };
  if (previous) body.previous_response_id = previous.id;
  const turn = addTurn(question, files.chosen);
  byId("question").value = "";
  setText(byId("ask-trouble"), "");
  showAbout();
  focusOn(turn.title);
  turn.element.scrollIntoView({ block: "start" });
  turn.run({ body }).then(() => turn.id === null && takeBack(turn));
}

/** A question that the server did not accept can be changed and asked again. */
function takeBack(turn) {
  turn.element.remove();
  turns.splice(turns.indexOf(turn), 1);
  byId("question").value ||= turn.question;
  setText(byId("ask-trouble"), inWords("The question was not accepted", turn.error));
  showAbout();
  if (turn.error.status !== 401) byId("question").focus();
}

function keep() {
  if (isRestoring) return; // those that are not shown again yet would be forgotten
  const kept = turns.filter((turn) => turn.id && turn.status !== "failed").slice(-MOST_KEPT);
  sessionStorage.setItem(KEPT, JSON.stringify(kept.map(({ id, question, files }) => ({ id, question, files }))));
}

/** Shows the questions of this tab again: answers as they were, and the reading that continues. */
async function showKept() {
  const kept = JSON.parse(sessionStorage.getItem(KEPT) || "[]");
  isRestoring = true;
  for (const { id, question, files: about } of kept) {
    let response;
    try {
      response = await json("GET", `v1/responses/${encodeURIComponent(id)}`);
    } catch {
      continue; // it is not kept on the server any more
    }
    const turn = addTurn(question, about);
    turn.id = id;
    turn.begin(response.status, "Resuming…");
    for (const file of about) if (files.files.has(file.id)) files.files.get(file.id).box.checked = true;
    if (["queued", "in_progress"].includes(response.status)) turn.run({ id });
    else turn.on({ type: `response.${response.status}`, response });
  }
  isRestoring = false;
  if (kept.length) files.note();
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(byId("key").value);
  byId("key").value = "";
  start();
});
byId("change-key").addEventListener("click", () => askForKey());
byId("start-again").addEventListener("click", start);
byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
byId("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  ask();
});
addEventListener("hashchange", () => takeKeyFromAddress() && start());

takeKeyFromAddress();
if (key()) start();
else askForKey();
