// Asking the server: keys, errors, streams.

const KEY = "pyllm.key";

/** What the server refused, or why it could not be asked. */
export class ApiError extends Error {
  /**
   * @param {string} message What was wrong.
   * @param {{status?: number, retryAfter?: number|null, param?: string|null}} details The HTTP status, 0 for none;
   *     seconds after which to try again; the parameter that was wrong.
   */
  constructor(message, { status = 0, retryAfter = null, param = null } = {}) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
    this.param = param;
  }
}

let askForKey = async () => null;
let asking = null;

/** `ask(message)` gives a key, or null; it is called when the server wants one. */
export function onKeyWanted(ask) {
  askForKey = ask;
}

/** Keep a key until this tab is closed; an empty one forgets it. */
export function setKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

/** Whether there is a key. */
export function hasKey() {
  return Boolean(sessionStorage.getItem(KEY));
}

/** Ask the server for JSON: GET, or POST with a body. */
export async function ask(path, body, signal) {
  return (await send(path, body, signal)).json();
}

/** The events of a stream, as objects. Leaving the loop, or aborting the signal, ends what the server does for it. */
export async function* stream(path, body, signal) {
  const response = await send(path, body, signal);
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let text = "";
  try {
    for (;;) {
      const { done, value } = await reader.read().catch((error) => {
        throw signal?.aborted ? error : new ApiError("The connection to the server was lost.");
      });
      if (done) break;
      text += decoder.decode(value, { stream: true });
      const events = text.split(/\r?\n\r?\n/);
      text = events.pop();
      for (const event of events) {
        const data = dataOf(event);
        if (data === "[DONE]") return;
        if (data === "") continue;
        const found = JSON.parse(data);
        if (found.error) throw errorOf(found.error, found.error.code, null);
        yield found;
      }
    }
    throw new ApiError("The server ended the answer before it was complete.");
  } finally {
    reader.cancel().catch(() => {});
  }
}

function dataOf(event) {
  return event
    .split(/\r?\n/)
    .filter((line) => line.startsWith("data:"))
    .map((line) => line.slice(5).trimStart())
    .join("\n");
}

async function send(path, body, signal) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { Accept: "application/json" };
    if (key) headers.Authorization = `Bearer ${key}`;
    if (body !== undefined) headers["Content-Type"] = "application/json";
    const options = { method: body === undefined ? "GET" : "POST", headers, signal, cache: "no-store" };
    if (body !== undefined) options.body = JSON.stringify(body);
    let response;
    try {
      response = await fetch(new URL(path, document.baseURI), options);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("The server cannot be reached. Is it still running?");
    }
    if (response.ok) return response;
    const error = await refusal(response);
    if (response.status !== 401) throw error;
    // Several requests may be refused at once: one question is enough, and a key given meanwhile is tried first.
    if (key === sessionStorage.getItem(KEY)) {
      asking ??= askForKey(key ? "The server does not know this key." : "").finally(() => (asking = null));
      const given = await asking;
      if (!given) throw error;
      setKey(given);
    }
  }
}

async function refusal(response) {
  let details = null;
  try {
    details = (await response.json()).error;
  } catch {
    // Something between here and the server has answered.
  }
  return errorOf(details, response.status, response.headers.get("Retry-After"));
}

function errorOf(details, status, retryAfter) {
  const message = typeof details === "string" ? details : details?.message;
  const seconds = retryAfter === null ? NaN : Number(retryAfter);
  return new ApiError(message || `The server answered with status ${status}.`, {
    status: Number(status) || 0,
    retryAfter: Number.isFinite(seconds) ? seconds : null,
    param: details?.param ?? null,
  });
}

/** What people are told about an error. */
export function explain(error) {
  if (!(error instanceof ApiError)) return `Something went wrong in this page: ${error.message}`;
  const message = /[.!?]$/.test(error.message) ? error.message : `${error.message}.`;
  const upper = message[0].toUpperCase() + message.slice(1);
  return error.retryAfter === null ? upper : `${upper} Try again in ${error.retryAfter} seconds.`;
}
