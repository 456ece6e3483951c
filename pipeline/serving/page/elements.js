// Elements of the page. Whatever comes from the server becomes a text node or an attribute, never markup.

export const byId = (id) => document.getElementById(id);

/** An element with attributes and children. A function as an attribute listens to the event of that name. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

export const button = (label, click, attributes = {}) => element("button", { type: "button", click, ...attributes }, label);

/** A name in its own direction of writing. */
export const isolated = (text) => element("bdi", {}, text);

/** Sets a text only if it is another one, so that nothing is drawn or read out for nothing. */
export function setText(place, text) {
  if (place.textContent !== text) place.textContent = text;
}

/** Says something to who listens to the page rather than sees it. */
export const say = (text) => setText(byId("said"), text);

/** Moves the focus to an element that is no control. */
export function focusOn(place) {
  place.setAttribute("tabindex", -1);
  place.focus();
}
