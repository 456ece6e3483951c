// Curves as SVG. The numbers under the pointer, or at the step chosen with the arrow keys, are shown below the figure.

const BOX = { width: 720, height: 220, left: 52, right: 12, top: 10, bottom: 26 };
const WINDOW = 10; // steps averaged by a line

const running = (ys) => ys.map((_, i) => {
  const window = ys.slice(Math.max(0, i + 1 - WINDOW), i + 1);
  return window.reduce((sum, y) => sum + y, 0) / window.length;
});

function ticks(low, high, most) {
  const raw = (high - low) / most || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= raw * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(k * step);
  return found;
}

/**
 * A figure of lines.
 * `lines` are {label, points: [[x, y, low, high]]}; low and high may be null. `average`: dots, and lines of running means.
 */
function figure(title, lines, average = false) {
  lines = lines.filter((line) => line.points.length);
  const all = lines.flatMap((line) => line.points), xs = all.map((p) => p[0]);
  const ys = all.flatMap((p) => p.slice(1).filter((y) => y !== null));
  let [x0, x1] = extent(xs), [y0, y1] = extent(ys);
  if (y0 >= 0) y0 = 0;
  if (y0 === 0 && y1 <= 1) y1 = y1 > 0.1 ? 1 : y1;
  if (y0 === y1) y1 = y0 + 1;
  if (x0 === x1) x1 = x0 + 1;
  const x = (v) => BOX.left + ((v - x0) / (x1 - x0)) * (BOX.width - BOX.left - BOX.right);
  const y = (v) => BOX.height - BOX.bottom - ((v - y0) / (y1 - y0)) * (BOX.height - BOX.top - BOX.bottom);
  const at = ([px, py]) => `${x(px).toFixed(1)},${y(py).toFixed(1)}`;
  const grid = ticks(y0, y1, 5).map((v) => svg("g", {},
    svg("line", { x1: BOX.left, x2: BOX.width - BOX.right, y1: y(v), y2: y(v), class: "grid" }),
    svg("text", { x: BOX.left - 6, y: y(v) + 4, "text-anchor": "end" }, shown(v))));
  const below = ticks(x0, x1, 8).filter(Number.isInteger).map((v) =>
    svg("text", { x: x(v), y: BOX.height - 8, "text-anchor": "middle" }, shown(v)));
  const cursor = svg("line", { y1: BOX.top, y2: BOX.height - BOX.bottom, class: "cursor", visibility: "hidden" });
  const drawn = lines.map((line, i) => {
    const means = average ? running(line.points.map((p) => p[1])) : null;
    const path = means ? line.points.map((p, k) => [p[0], means[k]]) : line.points;
    const spreads = line.points.filter((p) => p[2] !== null && p[2] !== undefined && p[3] !== null);
    return svg("g", { class: `line line-${i % 7}` },
      spreads.map((p) => svg("line", { x1: x(p[0]), x2: x(p[0]), y1: y(p[2]), y2: y(p[3]), class: "spread" })),
      svg("polyline", { points: path.map(at).join(" ") }),
      line.points.map((p) => svg("circle", { cx: x(p[0]).toFixed(1), cy: y(p[1]).toFixed(1), r: average ? 2 : 3 })));
  });
  const steps = [...new Set(xs)].sort((a, b) => a - b);
  const reading = element("p", { class: "reading" });
  let chosen = steps.length - 1;
  const read = (k) => {
    chosen = Math.min(steps.length - 1, Math.max(0, k));
    const step = steps[chosen];
    const values = lines.map((line) => [line, line.points.find((p) => p[0] === step)]).filter(([, p]) => p);
    const numbers = values.map(([line, p]) => `${line.label} ${shown(p[1])}${interval(p)}`);
    reading.replaceChildren(`step ${shown(step)}: ${numbers.join(", ")}`);
    for (const name of ["x1", "x2"]) cursor.setAttribute(name, x(step));
    cursor.setAttribute("visibility", "visible");
  };
  const image = svg("svg", {
    viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img", tabindex: 0,
    "aria-label": `${title}: ${lines.map((l) => `${l.label} from ${shown(l.points[0][1])} to ${shown(l.points[l.points.length - 1][1])}`).join("; ")}. Arrow keys choose a step.`,
    pointermove: (event) => {
      const box = image.getBoundingClientRect();
      const place = ((event.clientX - box.left) / box.width) * BOX.width;
      const value = x0 + ((place - BOX.left) / (BOX.width - BOX.left - BOX.right)) * (x1 - x0);
      read(steps.reduce((best, s, k) => (Math.abs(s - value) < Math.abs(steps[best] - value) ? k : best), 0));
    },
    keydown: (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by) read(chosen + by), event.preventDefault();
    },
  }, grid, below, drawn, cursor);
  read(chosen);
  cursor.setAttribute("visibility", "hidden");
  const keys = lines.map((line, i) => element("li", { class: `key key-${i % 7}` }, line.label));
  const note = average ? `Dots are steps, lines are means over the last ${WINDOW} of them.` : "Bars are 95% intervals.";
  return element("figure", {},
    element("figcaption", {}, title), lines.length > 1 ? element("ul", { class: "keys" }, keys) : null, image, reading,
    element("p", { class: "note" }, note),
    later("Numbers", () => table(["line", "step", "value"],
      lines.flatMap((line) => line.points.map((p) => [line.label, p[0], `${shown(p[1])}${interval(p)}`])))));
}

const interval = (p) => (p[2] === null || p[2] === undefined ? "" : ` (${shown(p[2])} to ${shown(p[3])})`);

function extent(values) {
  return values.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);
}

function drawCurves(curves, validation) {
  const place = byId("curves");
  const points = (name) => curves.steps.map((step, i) => [step, curves.metrics[name][i]]).filter((p) => p[1] !== null);
  const line = (name, label = name) => ({ label, points: points(name) });
  const names = Object.keys(curves.metrics);
  const first = names.includes("reward") ? "reward" : "loss";
  if (names.includes(first)) place.append(figure(first === "reward" ? "Reward" : "Loss", [line(first)], true));
  const cells = Object.entries(validation).map(([label, found]) => ({ label, points: found }));
  if (cells.length > 7) {
    place.append(figure("Accuracy on held-out questions, by step", [cells.find((cell) => cell.label === "all")]));
    const rest = element("div");
    place.append(element("div", {}, choice("Set and length", cells.map((cell, i) => [i, cell.label]), (i) =>
      rest.replaceChildren(figure("Accuracy on held-out questions of this set and length", [cells[i]]))), rest));
  } else if (cells.length) {
    place.append(figure("Accuracy on held-out questions, by step", cells));
  } else {
    place.append(element("p", { class: "note" }, "No validation: accuracy over the steps is not known."));
  }
  const facts = ["memory_written", "memory_kept", "memory_answered", "memory_junk"].filter((n) => names.includes(n));
  if (facts.length) place.append(figure("What the memory did with the needed facts", facts.map((n) => line(n, n.slice(7))), true));
  if (names.length) {
    const rest = element("div");
    const draw = (name) => rest.replaceChildren(figure(name, [line(name)], true));
    names.sort();
    place.append(element("div", {}, choice("Another metric", names.map((name) => [name, name]), draw), rest));
    draw(names[0]);
  } else {
    place.append(element("p", {}, "No step has been trained yet."));
  }
}
