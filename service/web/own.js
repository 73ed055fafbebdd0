// A painting of one's own: a style at once, by the encoder; and one that stays, once the network has been taught it.

import { onChosen, onDrop, Photo } from "/web/photo.js";
import { deleteStyle, teach } from "/web/service.js";
import { t } from "/web/strings.js";

export const PAINTING = "style_image"; // what mixes call it
const SENT_SIDE = 1024; // pixels; the service looks at no more
const THUMBNAIL_SIDE = 320;
const NAME_LENGTH = 48;
const $ = (id) => document.getElementById(id);

export class Own {
  /** `changed()` is called when there is another painting, `ordered(job)` with what is kept of a new job, and
   *  `deleted(style)` when a style of one's own is gone. */
  constructor(changed, ordered, deleted) {
    Object.assign(this, { changed, ordered, deleted });
    this.painting = null;
    this.thumbnail = "";
    this.models = [];
    onChosen($("own-file"), (file) => this.take(file));
    onDrop($("own"), (file) => this.take(file));
    $("keep").addEventListener("click", () => this.keep());
  }

  /** `models` are those that take a painting; of the styles, one's own can be deleted. */
  offer(styles, models) {
    this.models = models;
    this.styles = styles.filter((style) => style.own);
    this.draw();
  }

  draw() {
    $("own").hidden = !this.models.length;
    $("keep-set").hidden = !this.painting;
    $("own-styles").replaceChildren(...(this.styles ?? []).map((style) => this.row(style)));
  }

  /** As one of the gallery's styles; none where nothing was chosen. */
  get asStyles() {
    if (!this.painting) return [];
    const { models, thumbnail: preview } = this;
    return [{ name: PAINTING, title: t("yourPainting"), artist: this.painting.name ?? "", year: "", credit: "", models, links: { preview } }];
  }

  async take(blob) {
    try {
      this.painting = await Photo.open(blob);
    } catch (error) {
      this.say(error.message, true);
      return;
    }
    this.thumbnail = this.painting.dataUrl(THUMBNAIL_SIDE);
    $("keep-title").value = this.painting.name ?? "";
    this.say("");
    this.draw();
    this.changed();
  }

  /** What goes along with a photo whose fields name it, or null. */
  file(fields) {
    const named = [fields.style, fields.style_coarse].some((mix) => mix.split(/[,:]/).includes(PAINTING));
    return named ? this.painting.sized(SENT_SIDE) : null;
  }

  forget() {
    this.painting = null;
    this.draw();
  }

  /** Ask for a style that stays. */
  async keep() {
    const title = $("keep-title").value.trim();
    if (!title) {
      this.say(t("needName"), true);
      return;
    }
    $("keep").disabled = true;
    try {
      const job = await teach({ painting: await this.painting.sized(SENT_SIDE), fields: { name: nameOf(title), title } });
      this.ordered({ id: job.id, title: t("styleOf", { title }), picture: this.thumbnail });
      this.say(t("teaching"));
    } catch (error) {
      this.say(error.message, true);
    } finally {
      $("keep").disabled = false;
    }
  }

  row(style) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: t("deleteStyle", style) });
    button.addEventListener("click", async () => {
      if (!confirm(t("deleteSure", style))) return;
      try {
        await deleteStyle(style.name);
        this.deleted(style);
      } catch (error) {
        this.say(error.message, true);
      }
    });
    return button;
  }

  say(text, wrong = false) {
    $("own-status").textContent = text;
    $("own-status").classList.toggle("wrong", wrong);
  }
}

/** A title in any script as a name of a-z, 0-9 and _; one that nothing is left of gets a name of the moment. */
function nameOf(title) {
  const plain = title.normalize("NFKD").toLowerCase().replace(/[^a-z0-9]+/g, "_").replace(/^_+|_+$/g, "").slice(0, NAME_LENGTH);
  return plain || `own_${Date.now().toString(36)}`;
}
