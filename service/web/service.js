// The HTTP contract, as far as the page needs it.

import { t } from "/web/strings.js";

const POLL_MS = 700;

/** `message` is for people; `code` is the contract's; `retryAfter` (s) only where the server said when to come back. */
export class Problem extends Error {
  constructor(message, { code = null, retryAfter = null } = {}) {
    super(message);
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

export async function loadStyles() {
  return (await (await ask("/styles")).json()).styles;
}

/** `order`: image (Blob), fields (an object), mask (Blob or null). Gives {blob, style}. What is so large that it is a job
 *  is waited for; `progress(share)` hears of it. */
export async function stylise({ image, fields, mask }, signal, progress = () => {}) {
  const body = new FormData();
  body.append("image", image, "photo");
  for (const [name, value] of Object.entries(fields)) body.append(name, value);
  if (mask) body.append("mask", mask, "mask.png");
  const response = await ask("/stylize", { method: "POST", body, signal });
  if (response.status === 202) return finished(await response.json(), progress);
  return { blob: await response.blob(), style: response.headers.get("X-Style") };
}

async function finished(job, progress) {
  while (job.status === "queued" || job.status === "running") {
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    job = await (await ask(job.links.self)).json();
    progress(job.progress);
  }
  if (job.status !== "succeeded") throw new Problem(job.error?.detail ?? t("jobEnded", { status: job.status }));
  return { blob: await (await ask(job.links.result)).blob(), style: job.parameters.style };
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
  throw new Problem(problem.detail ?? t("answered", { status: response.status }), { code: problem.code, retryAfter });
}
