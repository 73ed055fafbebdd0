// The newest wish wins: a small picture at once, a larger one when the hand rests; older requests are aborted.

import { PREVIEW_SIDE } from "/web/photo.js";

const LIVE_SIDE = 448; // pixels
const RESTED_MS = 500;

export class Live {
  /** `paint(side, signal)` does the work; `fail(error)` hears what went wrong with the newest wish. */
  constructor(paint, fail) {
    this.paint = paint;
    this.fail = fail;
    this.running = null;
  }

  async wish() {
    this.stop();
    const running = (this.running = new AbortController());
    try {
      await this.paint(LIVE_SIDE, running.signal);
      await new Promise((resolve) => setTimeout(resolve, RESTED_MS));
      if (!running.signal.aborted) await this.paint(PREVIEW_SIDE, running.signal);
    } catch (error) {
      if (!running.signal.aborted) this.fail(error);
    }
  }

  stop() {
    this.running?.abort();
  }
}
