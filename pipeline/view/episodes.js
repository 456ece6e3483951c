// The sampled episodes: a list to filter, and the chosen one with its document as a bar of sections.

const EVENTS = { written: "written", missed: "not written", appeared: "appeared", lost: "lost" };

function drawEpisodes(listed) {
  const place = byId("episodes"), count = listed.step.length;
  if (!count) return place.append(element("p", {}, "No episode was sampled yet."));
  const filter = { reward: "all", from: -Infinity, to: Infinity, task: "all", text: "" };
  const rewards = { all: () => true, right: (r) => r === 1, wrong: (r) => r === 0, between: (r) => r !== null && r !== 0 && r !== 1 };
  const detail = element("article", { id: "episode", "aria-live": "off" });
  const found = element("p", { role: "status" });
  const rows = listed.step.map((step, i) => element("button", { type: "button", click: () => open(i) },
    element("span", { class: "number" }, `step ${step}`), element("span", { class: "number" }, `reward ${shown(listed.reward[i], 3)}`),
    element("span", {}, listed.question[i] || "no question")));
  const items = rows.map((row) => element("li", {}, row));
  const accepted = (i) => rewards[filter.reward](listed.reward[i]) && listed.step[i] >= filter.from && listed.step[i] <= filter.to
    && (filter.task === "all" || listed.task[i] === filter.task) && listed.question[i].toLowerCase().includes(filter.text);
  const apply = (name, value) => {
    filter[name] = value;
    const shownNow = items.filter((item, i) => !(item.hidden = !accepted(i))).length;
    found.replaceChildren(`${shownNow} of ${plural(count, "episode")}`);
  };
  const open = (i) => {
    rows.forEach((row, k) => row.toggleAttribute("aria-current", k === i));
    detail.replaceChildren(...episodeView(parsed(`episode-${i}`)));
  };
  const steps = (name, label, nothing) => element("label", {}, label, " ", element("input", {
    type: "number", input: (event) => apply(name, event.target.value === "" ? nothing : Number(event.target.value)) }));
  place.append(
    element("form", { class: "filters", submit: (event) => event.preventDefault() },
      choice("Reward", [["all", "all"], ["right", "1"], ["between", "between 0 and 1, or other"], ["wrong", "0"]], (v) => apply("reward", v)),
      steps("from", "From step", -Infinity), steps("to", "to step", Infinity),
      choice("Task", [["all", "all"], ...[...new Set(listed.task)].sort().map((t) => [t, t])], (v) => apply("task", v)),
      element("label", {}, "Question contains ", element("input", { type: "search", input: (e) => apply("text", e.target.value.toLowerCase()) }))),
    found, element("ol", { class: "list", "aria-label": "Sampled episodes" }, items), detail);
  apply("reward", "all");
  open(0);
}

function episodeView(episode) {
  const scales = scalesOf(episode), memories = episode.memories.length;
  // A cell for each memory, then for each conversation that wrote none; without memories, for each conversation.
  const writers = episode.conversations.map((c, i) => i).filter((i) => episode.conversations[i][0] === "memory");
  const paired = memories > 0 && writers.length === memories;
  const others = episode.conversations.map((c, i) => i).filter((i) => !(paired && writers.includes(i)));
  const cells = [
    ...episode.memories.map((_, i) => ({ memory: i, conversation: paired ? writers[i] : null })),
    ...others.map((i) => ({ memory: null, conversation: i })),
  ];
  let mode = "advantage", current = 0;
  const panel = element("div", { class: "panel", role: "region", "aria-label": "The chosen section", tabindex: -1 });
  const draw = () => panel.replaceChildren(...cellView(episode, cells[current], mode, scales));
  const buttons = cells.map((cell, i) => element("button", {
    type: "button", class: cellClass(episode, cell), "aria-label": cellLabel(episode, cell), title: cellLabel(episode, cell),
    tabindex: i ? -1 : 0, click: () => choose(i),
  }, cell.memory === null ? (episode.conversations[cell.conversation][0] || "?").slice(0, 1).toUpperCase() : String(cell.memory + 1)));
  const choose = (i, focus = false) => {
    current = i;
    buttons.forEach((button, k) => {
      button.toggleAttribute("aria-current", k === i);
      button.setAttribute("tabindex", k === i ? 0 : -1);
    });
    if (focus) buttons[i].focus();
    draw();
  };
  const bar = element("div", { class: "bar", role: "toolbar", "aria-label": "Document as a bar of sections. Arrow keys move between them.",
    keydown: (event) => {
      const to = { ArrowLeft: current - 1, ArrowRight: current + 1, Home: 0, End: cells.length - 1 }[event.key];
      if (to === undefined || !cells[to]) return;
      event.preventDefault();
      choose(to, true);
    } }, buttons, lanes(episode, cells.length));
  bar.style.setProperty("--cells", cells.length);
  const modes = element("fieldset", {}, element("legend", {}, "Colour tokens by"), MODES.map(([value, label]) =>
    element("label", {}, element("input", { type: "radio", name: "mode", value, checked: value === mode ? "" : null,
      change: () => { mode = value; draw(); } }), " ", label)));
  if (cells.length) choose(0);
  return [
    element("h3", {}, episode.question || "No question"),
    list([["answer", shown(episode.answer) + (episode.cut ? " (cut off at its length limit)" : "")],
      ["gold answers", shown(episode.gold.join(" | "))], ["reward", shown(episode.reward)],
      ["over-long penalty", shown(episode.penalty)], ["advantage", shown(episode.advantage)],
      ["step", shown(episode.step)], ["task", episode.task], ["id", shown(episode.id)],
      ["document", episode.documentTokens === null ? "–" : plural(episode.documentTokens, "token")]]),
    ...(episode.missing.length ? [element("p", { class: "note" }, `This episode ${episode.missing.join("; it ")}.`)] : []),
    ...factsView(episode),
    element("div", { class: "wide" }, bar),
    cells.length ? modes : "", panel,
  ];
}

/** The needed facts: where each is, and what became of it. */
function factsView(episode) {
  if (!episode.facts.length) return [];
  const when = (name, fact) => episode.events.map((events, i) => (events.some(([e, f]) => e === name && f === fact) ? i + 1 : 0)).filter(Boolean).join(", ");
  const last = episode.held[episode.held.length - 1] || [];
  const all = episode.facts.every((_, fact) => last.includes(fact));
  const right = episode.reward === 1 ? "the reward is 1" : `the reward is ${shown(episode.reward)}, not 1`;
  return [
    table(["needed fact", "section", "written", "not written", "appeared", "lost", "in the last memory"], episode.facts.map(([text, section], fact) =>
      [text, section === null ? null : section + 1, ...Object.keys(EVENTS).map((name) => when(name, fact)), last.includes(fact) ? "yes" : "no"])),
    element("p", { class: "note" }, `Answered: the last memory holds ${all ? "all" : "not all"} needed facts, and ${right}. Numbers are those of sections.`),
  ];
}

/** For each fact, bars below the sections whose memories hold it. */
function lanes(episode, width) {
  return episode.facts.flatMap(([text], fact) => {
    const runs = [];
    episode.held.forEach((held, i) => {
      if (!held.includes(fact)) return;
      if (runs.length && runs[runs.length - 1][1] === i) runs[runs.length - 1][1] = i + 1;
      else runs.push([i, i + 1]);
    });
    return runs.map(([from, to]) => {
      const lane = element("span", { class: "held", title: `in memory after sections ${from + 1} to ${to}: ${text}` });
      lane.style.gridColumn = `${from + 1} / ${Math.min(to, width) + 1}`;
      lane.style.gridRow = String(fact + 2);
      return lane;
    });
  });
}

function eventsAt(episode, memory) {
  return (memory === null ? null : episode.events[memory]) || [];
}

function cellClass(episode, { memory }) {
  if (memory === null) return "cell other";
  const needed = episode.facts.some(([, section]) => section === memory) ? "needed" : "";
  return ["cell", needed, ...new Set(eventsAt(episode, memory).map(([event]) => event))].join(" ");
}

function cellLabel(episode, { memory, conversation }) {
  if (memory === null) return `conversation: ${episode.conversations[conversation][0] || "no role"}`;
  const needed = episode.facts.filter(([, section]) => section === memory).length;
  const events = eventsAt(episode, memory).map(([event, fact]) => `${EVENTS[event]}: ${episode.facts[fact][0].slice(0, 80)}`);
  return [`section ${memory + 1}`, needed ? `has ${plural(needed, "needed fact")}` : "", ...events].filter(Boolean).join("; ");
}

function cellView(episode, { memory, conversation }, mode, scales) {
  const parts = [];
  if (memory !== null) {
    const known = episode.sections[memory];
    parts.push(element("h4", {}, `Section ${memory + 1} of ${episode.memories.length}`));
    parts.push(known === undefined ? element("p", { class: "note" }, "Its text is not known.") : element("p", { class: "text section" }, known));
    const events = eventsAt(episode, memory);
    if (events.length) parts.push(element("ul", {}, events.map(([event, fact]) => element("li", { class: event }, `${EVENTS[event]}: ${episode.facts[fact][0]}`))));
    parts.push(element("h4", {}, "Memory after it, and what changed"), marked(memory ? episode.memories[memory - 1] : "", episode.memories[memory]));
  }
  if (conversation !== null) {
    const given = episode.conversations[conversation];
    parts.push(element("h4", {}, `Tokens of the response (${given[0] || "no role"}, advantage ${shown(given[2])})`), legend(mode, scales), ...coloured(given, mode, scales));
  }
  return parts.filter(Boolean);
}
