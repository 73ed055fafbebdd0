// The gallery of styles, and a slider for each one that was chosen.

import { PAINTING } from "/web/own.js";
import { t } from "/web/strings.js";

const $ = (id) => document.getElementById(id);
const FAVOURITE = "starry_night";
const UNKNOWN = "unknown"; // what the service says of a style of which it was told nothing
const rank = (style) => [PAINTING, FAVOURITE].indexOf(style.name) >>> 0; // what is not there comes last

export class Mixer {
  /** `changed()` is called whenever the mix is another. */
  constructor(changed) {
    this.styles = new Map();
    this.weights = new Map();
    this.changed = changed;
  }

  /** These are the styles now: what was chosen and is still there stays. Gives the titles of what is gone. */
  offer(styles) {
    const gone = this.chosen.filter((old) => !styles.some((style) => style.name === old.name));
    const first = this.styles.size === 0;
    styles = styles.toSorted((a, b) => rank(a) - rank(b));
    this.styles = new Map(styles.map((style) => [style.name, style]));
    for (const { name } of gone) this.weights.delete(name);
    if (first && styles.length) this.weights.set(styles[0].name, 50);
    $("gallery").replaceChildren(...styles.map((style) => this.card(style)));
    this.draw();
    return gone.map((style) => style.title);
  }

  get chosen() {
    return [...this.weights.keys()].map((name) => this.styles.get(name));
  }

  /** As the field `style` has it; "" where nothing is chosen. */
  get mix() {
    return [...this.weights].map(([name, weight]) => `${name}:${weight}`).join(",");
  }

  /** In words, what the service says that it applied. */
  titleOf(applied) {
    const parts = Object.fromEntries(applied.split("; ").map((part) => part.split("=").reverse()).map(([mix, field = "style"]) => [field, mix]));
    const style = this.titles(parts.style);
    return parts.style_coarse ? t("inColours", { style, palette: this.titles(parts.style_coarse) }) : style;
  }

  titles(mix) {
    return mix.split(",").map((part) => {
      const [name, weight] = part.split(":");
      const title = this.styles.get(name)?.title ?? name;
      return weight ? `${title} ${Math.round(weight * 100)} %` : title;
    }).join(" + ");
  }

  /** Have `name` chosen, in the place of `other` where that was. */
  choose(name, other) {
    const weight = this.weights.get(other) ?? 50;
    this.weights.delete(other);
    this.weights.set(name, weight);
    for (const box of $("gallery").querySelectorAll("input")) box.checked = this.weights.has(box.value);
    this.draw();
  }

  toggle(name, chosen) {
    chosen ? this.weights.set(name, 50) : this.weights.delete(name);
    this.draw();
    this.changed();
  }

  /** A slider a style; with one style alone there is nothing to weigh. */
  draw() {
    $("mix-set").hidden = this.weights.size < 2;
    $("mix").replaceChildren(...[...this.weights.keys()].map((name) => this.slider(name)));
    this.percent();
  }

  percent() {
    const total = [...this.weights.values()].reduce((sum, weight) => sum + weight, 0);
    for (const output of $("mix").querySelectorAll("output")) {
      output.value = `${Math.round(100 * this.weights.get(output.dataset.style) / total)} %`;
    }
  }

  slider(name) {
    const { title } = this.styles.get(name);
    const row = make("div", { className: "slider" });
    const input = make("input", { type: "range", min: 1, max: 100, value: this.weights.get(name), id: `weight-${name}` });
    input.setAttribute("aria-label", t("weight", { title }));
    const output = make("output");
    output.dataset.style = name;
    input.addEventListener("input", () => {
      this.weights.set(name, input.valueAsNumber);
      this.percent();
      this.changed();
    });
    row.append(make("label", { htmlFor: input.id, textContent: title }), input, output);
    return row;
  }

  card(style) {
    const card = make("label", { className: "card", title: style.credit });
    const box = make("input", { type: "checkbox", className: "unseen", value: style.name, checked: this.weights.has(style.name) });
    box.addEventListener("change", () => this.toggle(style.name, box.checked));
    const text = make("span", { textContent: style.title });
    const by = [style.artist, style.year].filter((told) => told && told !== UNKNOWN);
    text.append(make("small", { textContent: by.join(", ") }));
    card.append(box, make("img", { src: style.links.preview, alt: "", loading: "lazy" }), text);
    return card;
  }
}

const make = (tag, properties = {}) => Object.assign(document.createElement(tag), properties);
