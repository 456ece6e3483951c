// Tokens of a response, coloured by a number of each: by depth of colour from a scale, or a colour for each version.

const DEPTHS = 5; // shades on each side of 0
const VERSION_COLOURS = 6;
const LARGE_RATIO = 0.2; // log-prob ratio with the deepest colour at least, e.g. where clipping begins

const MODES = [
  ["advantage", "advantage"], ["ratio", "log-prob ratio"], ["version", "weight version"], ["none", "no colour"],
];

/** The tokens of a conversation: [text, log-prob, ratio, version]. Null if there are no numbers for them. */
function tokensOf([, response, , lengths, logprobs, ratios, versions]) {
  if (!lengths) return null;
  const writers = versions ? versions.flatMap(([version, count]) => Array(count).fill(version)) : [];
  let end = 0;
  return lengths.map((length, i) => {
    const text = response.slice(end, (end += length));
    const thousandth = (values) => (values && values[i] !== null ? values[i] / 1000 : null);
    return [text, thousandth(logprobs), thousandth(ratios), writers[i] ?? null];
  });
}

/** The class of a number on a scale from -largest to largest. */
function shade(value, largest) {
  if (value === null || !largest) return "";
  const depth = Math.min(DEPTHS, Math.round((Math.abs(value) / largest) * DEPTHS));
  return depth ? `${value > 0 ? "more" : "less"}-${depth}` : "";
}

/** The scales of an episode: the largest advantage and ratio, and its versions in order. */
function scalesOf(episode) {
  const size = (values) => values.reduce((most, v) => Math.max(most, Math.abs(v ?? 0)), 0);
  const ratios = episode.conversations.flatMap((c) => c[5] || []);
  const versions = [...new Set(episode.conversations.flatMap((c) => (c[6] || []).map(([v]) => v)))].sort((a, b) => a - b);
  return {
    advantage: size(episode.conversations.map((c) => c[2])),
    ratio: Math.max(LARGE_RATIO, size(ratios) / 1000),
    versions,
  };
}

function legend(mode, scales) {
  const sample = (name, label) => element("span", { class: `token ${name}` }, label);
  if (mode === "version") {
    return element("p", { class: "legend" }, "Version: ", scales.versions.length
      ? scales.versions.slice(0, 24).map((v, i) => sample(`version-${i % VERSION_COLOURS}`, ` ${v} `)) : "not known");
  }
  if (mode === "none") return element("p", { class: "legend" }, "Each token's numbers are in its tooltip.");
  const largest = scales[mode], text = mode === "ratio"
    ? "learner's log-prob when it trained the token, less the sampler's" : "advantage of the conversation, the weight of its tokens in the loss";
  return element("p", { class: "legend" }, sample("less-5", ` ${shown(-largest, 2)} `), " ",
    sample("less-2", ` ${shown(-0.4 * largest, 2)} `), " 0 ", sample("more-2", ` +${shown(0.4 * largest, 2)} `), " ",
    sample("more-5", ` +${shown(largest, 2)} `), ` ${text}`);
}

function coloured(conversation, mode, scales) {
  const tokens = tokensOf(conversation), advantage = conversation[2];
  if (!tokens) {
    return [element("p", { class: "text" }, conversation[1]), element("p", { class: "note" }, "Its tokens have no numbers.")];
  }
  const spans = tokens.map(([text, logprob, ratio, version]) => {
    const classes = { advantage: () => shade(advantage, scales.advantage), ratio: () => shade(ratio, scales.ratio),
      version: () => (version === null ? "" : `version-${scales.versions.indexOf(version) % VERSION_COLOURS}`), none: () => "" };
    const title = `log-prob ${shown(logprob)}, ratio ${shown(ratio)}, version ${shown(version)}, advantage ${shown(advantage)}`;
    return element("span", { class: `token ${classes[mode]()}`, title }, text);
  });
  return [
    element("p", { class: "text" }, spans.length ? spans : element("em", {}, "empty")),
    mode === "ratio" && !conversation[5]
      ? element("p", { class: "note" }, "No ratios: the learner computed no log-probs of this conversation, as of one whose advantage is 0.") : null,
    later("Numbers of its tokens", () => table(["token", "log-prob", "ratio", "version"], tokens.map(([text, ...numbers]) => [JSON.stringify(text), ...numbers]))),
  ];
}
