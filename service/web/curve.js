// A loss as it falls: evaluations to the right, the logarithm of the loss upwards.

import { t } from "/web/strings.js";

const [WIDTH, HEIGHT] = [300, 100]; // of the drawing's own, stretched to its place

export class Curve {
  /** `svg` has one polyline. */
  constructor(svg) {
    this.svg = svg;
    this.points = new Map(); // evaluation -> loss
  }

  /** An evaluation that is told again, after a resumption, counts once. */
  add(iteration, loss) {
    if (loss > 0) this.points.set(iteration, loss);
  }

  /** Over so many evaluations. */
  draw(iterations) {
    const points = [...this.points].sort(([a], [b]) => a - b);
    this.svg.toggleAttribute("hidden", points.length < 2);
    if (points.length < 2) return;
    const logs = points.map(([, loss]) => Math.log(loss));
    const [low, high] = [Math.min(...logs), Math.max(...logs)];
    const y = (log) => HEIGHT * (1 - (log - low) / Math.max(high - low, 1e-6));
    const places = points.map(([iteration], i) => `${(WIDTH * iteration / iterations).toFixed(1)},${y(logs[i]).toFixed(1)}`);
    this.svg.querySelector("polyline").setAttribute("points", places.join(" "));
    const [[, first], [last, now]] = [points[0], points.at(-1)];
    this.svg.setAttribute("aria-label", t("curve", { first: short(first), now: short(now), iteration: last }));
  }
}

/** A loss to three digits. */
export const short = (loss) => loss.toPrecision(3).replace(/e\+?/, "e");
