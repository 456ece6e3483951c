// Answers to the same question before and after training, side by side.

const OUTCOMES = {
  all: ["all", () => true],
  gained: ["better", (old, now) => now > old],
  lost: ["worse", (old, now) => now < old],
  same: ["the same score", (old, now) => now === old],
};

function drawComparisons(comparisons) {
  const place = byId("compare");
  if (!comparisons.length) return place.append(element("p", {}, "There is nothing to compare: no evaluation before and after, and no two validations."));
  comparisons.forEach((one, c) => {
    let outcome = "all", where = "all";
    const detail = element("div", { class: "sides" }), found = element("p", { role: "status" });
    const rows = one.pairs.map(([, question, old, now], p) => element("button", { type: "button", click: () => open(p) },
      element("span", { class: "number" }, `${shown(old, 3)} → ${shown(now, 3)}`), element("span", {}, question || "no question")));
    const items = rows.map((row) => element("li", {}, row));
    const open = (p) => {
      rows.forEach((row, k) => row.toggleAttribute("aria-current", k === p));
      detail.replaceChildren(...pairView(parsed(`pair-${c}-${p}`), one));
    };
    const apply = () => {
      const now = items.filter((item, p) => {
        const [place_, , before, after] = one.pairs[p];
        return !(item.hidden = !(OUTCOMES[outcome][1](before, after) && (where === "all" || where === place_)));
      }).length;
      found.replaceChildren(`${now} of ${plural(one.pairs.length, "question")}` + (one.of > one.pairs.length ? `; ${one.of} were answered, those whose score changed come first` : ""));
    };
    const places = [...new Set(one.pairs.map(([name]) => name))].sort();
    place.append(element("h3", {}, `${one.title}: ${one.before}, ${one.after}`),
      element("form", { class: "filters", submit: (event) => event.preventDefault() },
        choice("Score after", Object.entries(OUTCOMES).map(([value, [label]]) => [value, label]), (v) => { outcome = v; apply(); }),
        choice("Set and length", [["all", "all"], ...places.map((name) => [name, name])], (v) => { where = v; apply(); })),
      found, element("ol", { class: "list", "aria-label": `Questions of the ${one.title.toLowerCase()}` }, items), detail);
    apply();
    open(0);
  });
}

function pairView([where, question, gold, old, now], one) {
  const side = (title, [answer, score, memories]) => element("section", { "aria-label": title },
    element("h4", {}, title), list([["answer", shown(answer)], ["score", shown(score)]]),
    memories.length ? element("h5", {}, memories.length === 1 ? "Last memory" : `Last ${memories.length} memories, each with what changed`) : element("p", { class: "note" }, "No memory was kept."),
    memories.map((memory, i) => (i ? marked(memories[i - 1], memory) : element("p", { class: "text" }, memory || element("em", {}, "empty")))));
  return [
    element("div", { class: "both" }, element("h4", {}, question || "No question"), list([["gold answers", shown(gold.join(" | "))], ["set and length", shown(where)]])),
    side(one.before, old), side(one.after, now),
  ];
}
