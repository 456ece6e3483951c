// Numbers, places and words of a text.

export const plural = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;

export function size(bytes) {
  if (bytes < 1000) return plural(bytes, "byte");
  const [unit, of] = bytes < 1e6 ? ["kB", 1e3] : bytes < 1e9 ? ["MB", 1e6] : ["GB", 1e9];
  return `${(bytes / of).toLocaleString("en", { maximumSignificantDigits: 3 })} ${unit}`;
}

export function duration(seconds) {
  const all = Math.max(Math.round(seconds), 0), minutes = Math.floor(all / 60), hours = Math.floor(minutes / 60);
  if (hours) return `${hours} h ${minutes % 60} min`;
  return minutes ? `${minutes} min ${all % 60} s` : `${all} s`;
}

/** A place in words: file, page, line. */
export function placeText(place) {
  const page = place.page === null || place.page === undefined ? "" : `, page ${place.page}`;
  return `${place.file}${page}, line ${place.line}`;
}

export const wordCount = (text) => (text.match(/\S+/g) || []).length;

// As pipeline/asking/sources.py compares words: case-folded, and pairs of characters in scripts without blanks.
const UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff";
const IS_UNSPACED = new RegExp(`[${UNSPACED}]`, "u");
const WORD = new RegExp(`[${UNSPACED}]+|\\d+(?:[.,:/]\\d+)+|[\\p{L}\\p{M}\\p{N}_]+`, "gu");
const form = (word) => word.normalize("NFKC").toLowerCase();

/** The parts of a text in order: [text, word], where word is the one of `words` that the part is, or null. */
export function partsWith(text, words) {
  const parts = [];
  let end = 0;
  for (const found of text.matchAll(WORD)) {
    for (const [from, to, word] of IS_UNSPACED.test(found[0]) ? pairs(found[0], words) : whole(found[0], words)) {
      const begin = found.index + from;
      if (begin > end) parts.push([text.slice(end, begin), null]);
      end = found.index + to;
      parts.push([text.slice(begin, end), word]);
    }
  }
  if (end < text.length) parts.push([text.slice(end), null]);
  return parts;
}

function whole(run, words) {
  // \p{Script=Han} and others may stand in a word beside other letters; they are compared as they are written.
  return words.has(form(run)) ? [[0, run.length, form(run)]] : [];
}

function pairs(run, words) {
  const found = [];
  for (let i = 0; i < run.length; i++) {
    const word = [run.slice(i, i + 2), run.length === 1 ? run : ""].map(form).find((w) => w && words.has(w));
    if (!word) continue;
    const last = found[found.length - 1], to = Math.min(i + 2, run.length);
    if (last && last[1] >= i) last[1] = to;
    else found.push([i, to, word]);
  }
  return found;
}
