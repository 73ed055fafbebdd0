// A mask drawn over the picture: white is painted, black stays photo. Untouched, there is none.

import { blobOf } from "/web/photo.js";

const $ = (id) => document.getElementById(id);
const STEP = 0.03; // of the longer side, for an arrow key

export class Brush {
  /** `changed()` is called when a stroke has ended, or the mask has otherwise become another. */
  constructor(changed) {
    this.canvas = $("mask");
    this.context = this.canvas.getContext("2d");
    this.changed = changed;
    this.touched = false;
    this.at = null;
    $("brush").addEventListener("click", () => this.open(this.canvas.hidden));
    $("erase").addEventListener("click", () => press("erase", !pressed("erase")));
    $("invert").addEventListener("click", () => this.invert());
    $("clear").addEventListener("click", () => { this.reset(); this.open(false); this.changed(); });
    $("size").addEventListener("input", () => ($("size-value").value = `${$("size").value} %`));
    this.canvas.addEventListener("pointerdown", (event) => this.down(event));
    this.canvas.addEventListener("pointermove", (event) => this.canvas.hasPointerCapture(event.pointerId) && this.stroke(event));
    this.canvas.addEventListener("pointerup", () => this.changed());
    this.canvas.addEventListener("keydown", (event) => this.key(event));
  }

  /** A blank mask of so many pixels. */
  begin([width, height]) {
    Object.assign(this.canvas, { width, height });
    this.reset();
    this.open(false);
  }

  reset() {
    this.touched = false;
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.at = { x: this.canvas.width / 2, y: this.canvas.height / 2 };
  }

  open(is) {
    this.canvas.hidden = $("brush-set").hidden = !is;
    $("handle").hidden = is;
    press("brush", is);
    if (is) this.canvas.focus({ preventScroll: true });
  }

  /** The mask as a PNG, or null. */
  async blob() {
    return this.touched ? blobOf(this.canvas, "image/png") : null;
  }

  invert() {
    this.touch("white");
    this.fill("white", "difference");
    this.changed();
  }

  /** The first stroke ends the whole picture's turn: the brush begins on black, the eraser on white. */
  touch(ground) {
    if (!this.touched) this.fill(ground, "source-over");
    this.touched = true;
  }

  fill(colour, operation) {
    this.context.globalCompositeOperation = operation;
    this.context.fillStyle = colour;
    this.context.fillRect(0, 0, this.canvas.width, this.canvas.height);
  }

  down(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.at = this.place(event);
    this.stroke(event);
  }

  stroke(event) {
    const from = this.at;
    this.at = this.place(event);
    const steps = Math.max(1, Math.ceil(Math.hypot(this.at.x - from.x, this.at.y - from.y) / (this.radius / 3)));
    for (let step = 1; step <= steps; step++) {
      this.dab(from.x + (this.at.x - from.x) * step / steps, from.y + (this.at.y - from.y) * step / steps);
    }
  }

  /** One soft spot. */
  dab(x, y) {
    const value = pressed("erase") ? "0 0 0" : "255 255 255";
    this.touch(pressed("erase") ? "white" : "black");
    const spot = this.context.createRadialGradient(x, y, this.radius * 0.6, x, y, this.radius);
    spot.addColorStop(0, `rgb(${value})`);
    spot.addColorStop(1, `rgb(${value} / 0)`);
    this.context.globalCompositeOperation = "source-over";
    this.context.fillStyle = spot;
    this.context.fillRect(x - this.radius, y - this.radius, 2 * this.radius, 2 * this.radius);
  }

  key(event) {
    const step = STEP * Math.max(this.canvas.width, this.canvas.height);
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (event.key === "Escape") this.open(false);
    else if (event.key === " ") { this.dab(this.at.x, this.at.y); this.changed(); }
    else if (event.key in moves) {
      const [x, y] = moves[event.key];
      this.at = { x: clamp(this.at.x + x, this.canvas.width), y: clamp(this.at.y + y, this.canvas.height) };
    } else return;
    event.preventDefault();
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return {
      x: (event.clientX - box.left) / box.width * this.canvas.width,
      y: (event.clientY - box.top) / box.height * this.canvas.height,
    };
  }

  get radius() {
    return $("size").valueAsNumber / 100 * Math.max(this.canvas.width, this.canvas.height) / 2 + 1;
  }
}

const clamp = (value, most) => Math.min(Math.max(value, 0), most);
const pressed = (id) => $(id).getAttribute("aria-pressed") === "true";
const press = (id, is) => $(id).setAttribute("aria-pressed", is);
