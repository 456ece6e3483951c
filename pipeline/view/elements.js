// Elements of the page. Whatever comes from data becomes a text node or an attribute, never markup.

const SVG = "http://www.w3.org/2000/svg";

const parsed = (id) => JSON.parse(document.getElementById(id).textContent);
const byId = (id) => document.getElementById(id);

/** An element with attributes and children. A function as an attribute listens to the event of that name. */
function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

/** A <details> whose content is made when it is first opened. */
function later(summary, make) {
  const made = element("details", { toggle: () => {
    if (made.open && made.children.length === 1) made.append(make());
  } }, element("summary", {}, summary));
  return made;
}

/** A labelled choice. `options` are [value, label]. */
function choice(label, options, changed) {
  const select = element("select", { "aria-label": label, change: () => changed(select.value) },
    options.map(([value, shown]) => element("option", { value }, shown)));
  return element("label", {}, label, " ", select);
}

function table(head, rows) {
  return element("div", { class: "wide", tabindex: 0, role: "region", "aria-label": head.join(", ") },
    element("table", {},
      element("thead", {}, element("tr", {}, head.map((name) => element("th", { scope: "col" }, name)))),
      element("tbody", {}, rows.map((row) => element("tr", {}, row.map((cell) => element("td", {}, shown(cell))))))));
}

/** Names and values. */
function list(pairs) {
  return element("dl", {}, pairs.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}

/** A number or text as text; a dash for nothing. */
function shown(value, digits = 4) {
  if (value === null || value === undefined || value === "") return "–";
  if (typeof value !== "number") return value;
  return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(digits)));
}

const plural = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;
