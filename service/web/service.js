// The HTTP contract, as far as the page needs it.

import { t } from "/web/strings.js";

/** `message` is for people; `retryAfter` (s) only where the server said when to come back. */
export class Problem extends Error {
  constructor(message, retryAfter = null) {
    super(message);
    this.retryAfter = retryAfter;
  }
}

export async function loadStyles() {
  return (await (await ask("/styles")).json()).styles;
}

/** `order`: image (Blob), fields (an object), mask (Blob or null). Gives {blob, style}. */
export async function stylise({ image, fields, mask }, signal) {
  const body = new FormData();
  body.append("image", image, "photo");
  for (const [name, value] of Object.entries(fields)) body.append(name, value);
  if (mask) body.append("mask", mask, "mask.png");
  const response = await ask("/stylize", { method: "POST", body, signal });
  return { blob: await response.blob(), style: response.headers.get("X-Style") };
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
  const again = Number(response.headers.get("Retry-After")) || null;
  throw new Problem(problem.detail ?? t("answered", { status: response.status }), again);
}
