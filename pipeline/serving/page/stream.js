// A response as it is made: server-sent events, resumed where the connection was lost.

import { ApiError, json, request } from "./api.js";

const SILENT_MS = 45_000; // the server sends a comment every 15 s: after this the connection is dead
const LONGEST_WAIT_S = 15;
const POLL_S = 2;
const ENDS = new Set(["response.completed", "response.incomplete", "response.failed", "response.cancelled"]);
// The others repeat what these hold; they are not parsed.
const USED = new Set([...ENDS, "response.created", "response.queued", "response.in_progress",
  "response.output_item.done", "response.output_text.delta", "error"]);

/** The events of a stream in order: [name, data]. `heard` is called for all that comes, comments too. */
export async function* eventsOf(body, heard = () => {}) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", name = "", data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      heard();
      const lines = (rest + value).split(/\r?\n|\r(?=[^\n])/);
      rest = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield [name, data.join("\n")];
          name = "";
          data = [];
          continue;
        }
        const colon = line.indexOf(":"), field = colon < 0 ? line : line.slice(0, colon);
        const text = colon < 0 ? "" : line.slice(colon + (line[colon + 1] === " " ? 2 : 1));
        if (field === "event") name = text;
        else if (field === "data") data.push(text);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

const wait = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000));

/** Follows a response to its end.
 *
 * Args: `body`: the request that makes it; or `id` of one that was made. `on(event)`: called with each event, in order;
 * after a lost connection with those that came since. `lost(seconds)`: the connection was lost and is tried again then; null: only the end can still be told.
 * Raises ApiError: it cannot be followed.
 */
export async function follow({ body, id = null }, on, lost) {
  let after = null, failures = 0, handling = false;
  for (;;) {
    const dead = new AbortController();
    let silence = setTimeout(() => dead.abort(), SILENT_MS);
    const heard = () => {
      clearTimeout(silence);
      silence = setTimeout(() => dead.abort(), SILENT_MS);
    };
    try {
      const response = await (id === null
        ? request("POST", "v1/responses", { body, signal: dead.signal, accept: "text/event-stream" })
        : request("GET", `v1/responses/${encodeURIComponent(id)}?stream=true${after === null ? "" : `&starting_after=${after}`}`,
          { signal: dead.signal, accept: "text/event-stream" }));
      for await (const [name, data] of eventsOf(response.body, heard)) {
        if (!USED.has(name)) continue;
        const event = JSON.parse(data);
        failures = 0;
        after = event.sequence_number ?? after;
        id ??= event.response?.id ?? null;
        if (name === "error") throw new ApiError(500, String(event.message ?? "the server reported an error"));
        handling = true;
        on(event);
        handling = false;
        if (ENDS.has(name)) return;
      }
    } catch (error) {
      if (handling) throw error; // of this page: no new connection mends it
      if (error instanceof ApiError && error.status === 400 && id !== null) return poll(id, on, lost); // no longer held
      const lasts = error instanceof ApiError && error.status !== 0 && error.status !== 429 && error.status < 502;
      if (lasts || id === null) throw error instanceof ApiError ? error : new ApiError(0, "the connection was lost");
    } finally {
      clearTimeout(silence);
    }
    if (id === null) throw new ApiError(0, "the connection was lost before the reading began");
    const seconds = Math.min(2 ** failures++, LONGEST_WAIT_S);
    lost(seconds);
    await wait(seconds);
  }
}

/** Waits for the end of a response whose events are not held any more. */
async function poll(id, on, lost) {
  lost(null);
  for (;;) {
    try {
      const response = await json("GET", `v1/responses/${encodeURIComponent(id)}`);
      if (!["queued", "in_progress"].includes(response.status)) return on({ type: `response.${response.status}`, response });
    } catch (error) {
      if (error.status !== 0 && error.status !== 429 && error.status < 502) throw error;
    }
    await wait(POLL_S);
  }
}
