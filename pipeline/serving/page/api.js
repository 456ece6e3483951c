// Requests to the server with the key of this tab. Paths are relative, so that the page works below any prefix.

const KEPT = "palimpsest.key";

/** The server's refusal, or that it was not reached (status 0). */
export class ApiError extends Error {
  constructor(status, message, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** Takes the key out of the address, where it would stay in the history, and keeps it for this tab. */
export function takeKeyFromAddress() {
  const found = /(?:^#|&)key=([^&]+)/.exec(location.hash);
  if (!found) return false;
  history.replaceState(null, "", location.pathname + location.search);
  try {
    setKey(decodeURIComponent(found[1]));
  } catch {
    return false; // not what the server printed
  }
  return true;
}

export const key = () => sessionStorage.getItem(KEPT);
export const setKey = (given) => sessionStorage.setItem(KEPT, given.trim());

// A header cannot hold other characters: fetch would raise an error that looks like a lost connection.
const isKey = (given) => /^[\x21-\x7e]+$/.test(given || "");

function bearer() {
  if (!isKey(key())) throw new ApiError(401, "it has characters that no key has");
  return `Bearer ${key()}`;
}

/** The response to a request. Raises ApiError. */
export async function request(method, path, { body, signal, accept = "application/json" } = {}) {
  const headers = { Authorization: bearer(), Accept: accept };
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, body: body && JSON.stringify(body), signal, cache: "no-store" });
  } catch {
    throw new ApiError(0, "the server does not answer; check that it runs");
  }
  if (!response.ok) throw refusal(response.status, response.headers.get("Retry-After"), await response.text().catch(() => ""));
  return response;
}

export async function json(method, path, body) {
  const response = await request(method, path, { body });
  try {
    return await response.json();
  } catch {
    throw new ApiError(0, "the server's response ended early");
  }
}

/** Sends a file. `progress` gets the share that was sent. Raises ApiError; status -1: `signal` ended it. */
export function upload(file, progress, signal) {
  return new Promise((resolve, reject) => {
    const sent = new XMLHttpRequest(), form = new FormData(); // fetch does not tell how much was sent
    form.append("purpose", "user_data");
    form.append("file", file, file.name);
    sent.open("POST", "v1/files");
    sent.setRequestHeader("Authorization", bearer());
    sent.upload.addEventListener("progress", (event) => event.lengthComputable && progress(event.loaded / event.total));
    sent.addEventListener("error", () => reject(new ApiError(0, "the connection was lost; the file may be too large, or it cannot be read")));
    sent.addEventListener("abort", () => reject(new ApiError(-1, "it was not sent")));
    sent.addEventListener("load", () => {
      if (sent.status < 200 || sent.status > 299) {
        return reject(refusal(sent.status, sent.getResponseHeader("Retry-After"), sent.responseText));
      }
      try {
        resolve(JSON.parse(sent.responseText));
      } catch {
        reject(new ApiError(0, "the server's response ended early"));
      }
    });
    signal.addEventListener("abort", () => sent.abort());
    sent.send(form);
  });
}

function refusal(status, retryAfter, text) {
  let message = "";
  try {
    message = String(JSON.parse(text).error.message);
  } catch {
    // not the server's own error, as of a proxy
  }
  return new ApiError(status, message || `the server answered with the status ${status}`, seconds(retryAfter));
}

function seconds(retryAfter) {
  const given = Number.parseInt(retryAfter ?? "", 10);
  return Number.isFinite(given) && given >= 0 ? given : null;
}

/** What has not happened, and why: "It was not sent: the file is empty." */
export function inWords(what, error) {
  const reason = error instanceof ApiError ? error.message : `this page failed: ${error?.message ?? error}`;
  const isBusy = error.status === 429 || error.status === 503;
  const when = !isBusy ? "" : error.retryAfter === null ? "; try again later" : `; try again in ${error.retryAfter} s`;
  return `${what}: ${reason.replace(/\.$/, "")}${when}.`;
}
