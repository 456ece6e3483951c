// The difference of two texts, word by word.

const MOST_CELLS = 4e6; // of the table of common subsequences; for longer texts the middle counts as replaced

const words = (text) => text.match(/\s+|[^\s]+/g) || [];

/** Parts of `old` and `now` in order: [kind, text], where kind is "same", "gone" or "new". */
function difference(old, now) {
  const a = words(old), b = words(now);
  let start = 0, tail = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start++;
  while (tail < a.length - start && tail < b.length - start && a[a.length - 1 - tail] === b[b.length - 1 - tail]) tail++;
  const middle = changed(a.slice(start, a.length - tail), b.slice(start, b.length - tail));
  return joined([...b.slice(0, start).map((w) => ["same", w]), ...middle, ...b.slice(b.length - tail).map((w) => ["same", w])]);
}

function changed(a, b) {
  if (!a.length || !b.length || a.length * b.length > MOST_CELLS) {
    return [...a.map((w) => ["gone", w]), ...b.map((w) => ["new", w])];
  }
  const width = b.length + 1, longest = new Uint32Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      longest[i * width + j] = a[i] === b[j]
        ? longest[(i + 1) * width + j + 1] + 1
        : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
    }
  }
  const parts = [];
  let i = 0, j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      parts.push(["same", a[i++]]);
      j++;
    } else if (j === b.length || (i < a.length && longest[(i + 1) * width + j] >= longest[i * width + j + 1])) {
      parts.push(["gone", a[i++]]);
    } else {
      parts.push(["new", b[j++]]);
    }
  }
  return parts;
}

function joined(parts) {
  const runs = [];
  for (const [kind, word] of parts) {
    if (runs.length && runs[runs.length - 1][0] === kind) runs[runs.length - 1][1] += word;
    else runs.push([kind, word]);
  }
  return runs;
}

/** The new text with what was added and removed marked. */
function marked(old, now) {
  const tags = { same: "span", gone: "del", new: "ins" };
  const parts = difference(old, now).map(([kind, text]) => element(tags[kind], {}, text));
  return element("p", { class: "text" }, parts.length ? parts : element("em", {}, "empty"));
}
