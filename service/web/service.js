// The HTTP contract, as far as the page needs it.

import { said, t } from "/web/strings.js";

const POLL_MS = 1500;
const LISTENERS = 2; // streams at once: a browser has six connections to a server, and pictures need some
const FINISHED = ["succeeded", "failed", "cancelled", "expired"];
let listening = 0;

/** `message` is for people; `status` and `code` are the answer's; `retryAfter` (s) only where the server said when to
 *  come back. Without a `status` there was no answer. */
export class Problem extends Error {
  constructor(message, { status = null, code = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, code, retryAfter });
  }

  /** Whether it may be over by itself. */
  get passes() {
    return this.status === null || this.status === 503;
  }
}

/** {styles, style_image}: the latter are the models that take a painting along with a photo. */
export async function loadStyles() {
  return (await ask("/styles")).json();
}

/** `order`: image (Blob), fields (an object), mask and style_image (Blob or null). Gives {blob, style}. What is so large that it is a job
 *  is waited for; `progress(share)` hears of it. */
export async function stylise(order, signal, progress = () => {}) {
  const response = await ask("/stylize", { method: "POST", body: form(order), signal });
  if (response.status !== 202) return { blob: await response.blob(), style: response.headers.get("X-Style") };
  const job = await follow((await response.json()).id, { progress: (told) => progress(told.progress) }, signal);
  if (job.status !== "succeeded") throw new Problem(job.error ? said(job.error) : t("jobEnded"));
  return { blob: await (await ask(job.links.result, { signal })).blob(), style: job.parameters.style };
}

/** Order an optimisation: `files` are image, and style_image or none, mask or none. Gives the job. Asked again once
 *  where no answer came: with its key, an order that had arrived is not taken twice. */
export async function optimise(order) {
  const options = { method: "POST", body: form(order), headers: { "Idempotency-Key": unguessable() } };
  const response = await ask("/gatys", options).catch((error) => {
    if (error.status !== null) throw error;
    return ask("/gatys", options);
  });
  return response.json();
}

/** Have a style made of a painting: `order` has it (Blob) and fields. Gives the job. */
export async function teach(order) {
  return (await ask("/styles", { method: "POST", body: form(order) })).json();
}

export const deleteStyle = (name) => ask(`/styles/${name}`, { method: "DELETE" });
export const cancel = (id) => ask(`/jobs/${id}`, { method: "DELETE" });
export const resultOf = async (id) => (await ask(`/jobs/${id}/result`)).blob();
export const isFinished = (job) => FINISHED.includes(job.status);

/** Follow a job to its end, over lost connections and restarts of the service; gives the job as it was left. `hear` may
 *  have `job(job)`, `progress(event)`, `preview(event)`, and `trouble(problem)`, which is null when it is over.
 *  Raises Problem where the server knows no such job. */
export async function follow(id, hear, signal) {
  let last = 0;
  for (;;) {
    try {
      const job = await (await ask(`/jobs/${id}`, { signal })).json();
      hear.trouble?.(null);
      hear.job?.(job);
      if (job.status === "expired") return job;
      if (isFinished(job) || (job.status === "running" && listening < LISTENERS)) {
        const before = last;
        last = await listen(id, last, hear, signal);
        if (isFinished(job)) return job;
        if (last !== before) continue; // the stream has ended: so has the job, most likely
      }
    } catch (error) {
      if (signal?.aborted || error.passes === false) throw error;
      hear.trouble?.(error);
    }
    await pause(POLL_MS, signal);
  }
}

/** Hear a job's events after `last`, to the end of the stream; gives the id of the newest. */
async function listen(id, last, hear, signal) {
  listening += 1;
  try {
    const response = await ask(`/jobs/${id}/events`, { headers: { "Last-Event-ID": last }, signal });
    for await (const event of events(response.body)) {
      last = event.id;
      hear[event.type]?.(event.data);
    }
  } catch (error) {
    if (error instanceof Problem || signal?.aborted) throw error;
    hear.trouble?.(new Problem(t("unreachable"))); // in the middle of a stream
  } finally {
    listening -= 1;
  }
  return last;
}

/** Server-Sent Events as {id, type, data}. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = Object.fromEntries(block.split("\n").map((line) => line.split(/: (.*)/s)));
      if (lines.data) yield { id: Number(lines.id), type: lines.event, data: JSON.parse(lines.data) };
    }
  }
}

function form({ fields, ...files }) {
  const body = new FormData();
  for (const [name, file] of Object.entries(files)) if (file) body.append(name, file, name);
  for (const [name, value] of Object.entries(fields)) if (value !== "") body.append(name, value);
  return body;
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(t("unreachable"));
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  const retryAfter = Number(response.headers.get("Retry-After")) || null;
  const { status } = response;
  throw new Problem(problem.detail ? said(problem) : t("answered", { status }), { status, code: problem.code, retryAfter });
}

const pause = (ms, signal) => new Promise((resolve, reject) => {
  setTimeout(resolve, ms);
  signal?.addEventListener("abort", () => reject(signal.reason), { once: true });
});

const unguessable = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16)).join("-");
