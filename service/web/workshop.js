// The slow way: any painting, an order for the optimisation, and the jobs that came of it.

import { Jobs } from "/web/jobs.js";
import { onChosen, onDrop, Photo } from "/web/photo.js";
import { optimise, Problem } from "/web/service.js";
import { t } from "/web/strings.js";

const KEPT_SIDE = 640; // pixels, of the photo that is kept beside a job
const PAINTING_SIDE = 1024;
const OWN = ""; // the choice of an uploaded painting
const $ = (id) => document.getElementById(id);

export class Workshop {
  /** `photo()` is the Photo on the easel or null, `mask()` the brush's Blob or null, `color()` what keeps colours;
   *  `made(name)` is called when a job has made a style. */
  constructor(photo, mask, color, made) {
    Object.assign(this, { photo, mask, color });
    this.painting = null;
    this.url = ""; // of the painting as it is shown
    this.jobs = new Jobs(made);
    onChosen($("painting-file"), (file) => this.take(file));
    onDrop($("painting-drop"), (file) => this.take(file));
    $("shipped").addEventListener("change", () => this.draw());
    $("order").addEventListener("submit", (event) => { event.preventDefault(); this.submit(); });
  }

  /** The paintings that the store ships, to choose from. */
  offer(styles) {
    this.shipped = new Map(styles.filter((style) => style.links.painting).map((style) => [style.name, style]));
    const chosen = $("shipped").value;
    const options = [...this.shipped.values()].map(({ name, title }) => new Option(title, name, false, name === chosen));
    $("shipped").replaceChildren($("shipped").options[0], ...options);
    $("shipped-choice").hidden = !this.shipped.size;
    this.draw();
  }

  speak() {
    this.jobs.draw();
    this.draw();
  }

  async take(blob) {
    try {
      this.painting = await Photo.open(blob);
    } catch (error) {
      this.say(error.message, true);
      return;
    }
    $("shipped").value = OWN;
    URL.revokeObjectURL(this.url);
    this.url = URL.createObjectURL(await this.painting.within(KEPT_SIDE));
    this.say("");
    this.draw();
  }

  draw() {
    const style = this.shipped?.get($("shipped").value);
    const image = $("painting");
    image.hidden = !style && !this.url;
    if (!image.hidden) image.src = style?.links.painting ?? this.url;
    image.alt = style?.title ?? t("yourPainting");
  }

  async submit() {
    $("start").disabled = true;
    try {
      this.jobs.add(await this.ordered());
      this.say(t("ordered"));
    } catch (error) {
      const again = error.retryAfter ? ` ${t("comeBack", { seconds: error.retryAfter })}` : "";
      this.say(error.message + again, true);
    } finally {
      $("start").disabled = false;
    }
  }

  /** The order given; what is kept of its job. */
  async ordered() {
    const [photo, style] = [this.photo(), $("shipped").value];
    if (!photo) throw new Problem(t("needPhoto"));
    if (!style && !this.painting) throw new Problem(t("needPainting"));
    const fields = Object.fromEntries(new FormData($("order")));
    const job = await optimise({
      image: await photo.sized(Number(fields.max_side)),
      style_image: style ? null : await this.painting.sized(PAINTING_SIDE),
      mask: await this.mask(),
      fields: { ...fields, style, preserve_color: this.color() },
    });
    const painting = this.shipped.get(style)?.title ?? this.painting.name ?? t("yourPainting");
    const title = `${painting}, ${t(`short_${fields.preset}`)}`;
    return { id: job.id, title, photo: await photo.dataUrl(KEPT_SIDE) };
  }

  say(text, wrong = false) {
    $("order-status").textContent = text;
    $("order-status").classList.toggle("wrong", wrong);
  }
}
