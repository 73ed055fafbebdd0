// How a mix is to be painted: strength, strokes, colours, palette, and by which network.

import { PREVIEW_SIDE } from "/web/photo.js";
import { t } from "/web/strings.js";

const LARGEST_STROKE = 16; // that the service takes
const AUTOMATIC = "";
const $ = (id) => document.getElementById(id);
const checked = (name) => document.querySelector(`input[name=${name}]:checked`).value;

export class Looks {
  /** `changed()` is called whenever one of them is another. */
  constructor(changed) {
    this.models = [];
    this.styles = [];
    this.painted = [];
    $("strength").addEventListener("input", () => { $("strength-value").value = `${$("strength").value} %`; changed(); });
    $("looks").addEventListener("change", (event) => event.target.id !== "strength" && changed());
    $("palette").addEventListener("change", () => this.fit(this.painted));
  }

  get color() {
    return checked("color");
  }

  /** The fields for a result with a longer side of so many pixels: strokes take the same part of every size. */
  fields(side) {
    return {
      strength: $("strength").value / 100,
      preserve_color: this.color,
      stroke: Math.min(LARGEST_STROKE, Math.max(1, checked("stroke") * side / PREVIEW_SIDE)),
      style_coarse: $("palette").value,
      model: $("model").value,
    };
  }

  /** The networks that there are, and the styles for a palette. */
  offer(styles) {
    this.styles = styles;
    this.models = [...new Set(styles.flatMap((style) => style.models))];
    this.draw();
  }

  draw() {
    const chosen = this.models.includes($("model").value) ? $("model").value : AUTOMATIC;
    const options = this.models.map((name) => new Option(name === "fast" ? t("modelFast") : name, name));
    $("model").replaceChildren(new Option(t("modelAny"), AUTOMATIC), ...options);
    $("model").value = chosen;
    $("model-choice").hidden = this.models.length < 2;
    const palette = this.palette?.name ?? AUTOMATIC;
    $("palette").replaceChildren(new Option(t("paletteOwn"), AUTOMATIC), ...this.styles.map(({ name, title }) => new Option(title, name)));
    $("palette").value = palette;
  }

  /** The style whose colours were chosen, if any. */
  get palette() {
    return this.styles.find((style) => style.name === $("palette").value);
  }

  /** Only networks that have all of `styles`, and the palette, can be chosen; one that has not is given up. */
  fit(styles) {
    this.painted = styles;
    const needed = this.palette ? [...styles, this.palette] : styles;
    for (const option of $("model").options) {
      option.disabled = option.value !== AUTOMATIC && !needed.every((style) => style.models.includes(option.value));
    }
    if ($("model").selectedOptions[0]?.disabled) $("model").value = AUTOMATIC;
  }
}
