// The jobs of this browser: a card each, there again after a reload. Their ids are kept here, the jobs on the server.

import { uncover, watchHandle } from "/web/compare.js";
import { Curve, short } from "/web/curve.js";
import { cancel, follow, isFinished, resultOf } from "/web/service.js";
import { saveFile, show } from "/web/files.js";
import { said, t, translate } from "/web/strings.js";

const KEPT = 12;
const STORE = "jobs";
const $ = (id) => document.getElementById(id);

export class Jobs {
  /** `made(name)` is called when a job has made a style. */
  constructor(made) {
    this.made = made;
    this.cards = [];
    for (const kept of remembered().reverse()) this.add(kept);
  }

  /** `kept`: id, title, and as data: URLs `photo`, or `picture` where there is no photo to compare with. */
  add(kept) {
    const card = new Card(kept, (gone) => this.remove(gone), this.made);
    this.cards.unshift(card);
    $("jobs").prepend(card.element);
    for (const old of this.cards.slice(KEPT)) this.remove(old);
    this.remember();
  }

  /** In the language that is spoken now. */
  draw() {
    for (const card of this.cards) {
      translate(card.element);
      card.draw();
    }
  }

  remove(card) {
    card.leave();
    this.cards = this.cards.filter((other) => other !== card);
    this.remember();
  }

  /** A browser that has no room for the photos keeps the rest. */
  remember() {
    const kept = this.cards.map((card) => card.kept);
    try {
      localStorage.setItem(STORE, JSON.stringify(kept));
    } catch {
      localStorage.setItem(STORE, JSON.stringify(kept.map(({ id, title }) => ({ id, title }))));
    }
  }
}

function remembered() {
  try {
    return JSON.parse(localStorage.getItem(STORE)) ?? [];
  } catch {
    return [];
  }
}

class Card {
  constructor(kept, remove, made) {
    Object.assign(this, { kept, made });
    this.element = $("job").content.firstElementChild.cloneNode(true);
    this.part = (name) => this.element.querySelector(`.${name}`);
    this.curve = new Curve(this.part("curve"));
    this.job = null;
    this.trouble = null;
    this.etaS = null;
    this.leaving = new AbortController();
    translate(this.element);
    this.part("title").textContent = kept.title;
    if (kept.photo) this.part("before").src = kept.photo;
    if (kept.photo ?? kept.picture) this.part("result").src = kept.photo ?? kept.picture;
    watchHandle(this.part("stage"));
    this.part("stop").addEventListener("click", () => this.stop());
    this.part("save").addEventListener("click", () => this.save());
    this.part("remove").addEventListener("click", () => remove(this));
    this.draw();
    this.follow();
  }

  async follow() {
    const hear = {
      job: (job) => { this.job = { ...job, iteration: Math.max(job.iteration, this.job?.iteration ?? 0) }; this.draw(); },
      progress: (event) => this.progress(event),
      preview: (event) => { if (!isFinished(this.job)) this.part("result").src = `${event.url}?${event.iteration}`; },
      trouble: (problem) => { this.trouble = problem; this.draw(); },
    };
    try {
      const job = await follow(this.kept.id, hear, this.leaving.signal);
      if (job.status === "succeeded") await this.present(job);
    } catch (error) {
      if (this.leaving.signal.aborted) return;
      this.trouble = error;
    }
    this.draw();
  }

  /** A finished picture; or a style, which is in the gallery then. */
  async present(job) {
    if (job.parameters.method !== "refine") {
      show(this.part("result"), await resultOf(job.id));
      return;
    }
    this.part("result").src = job.links.preview;
    this.made(job.parameters.name);
  }

  progress({ iteration, loss, eta_s: etaS }) {
    if (loss) this.curve.add(iteration, loss.total);
    this.etaS = etaS;
    if (!isFinished(this.job)) Object.assign(this.job, { iteration, loss });
    this.draw();
  }

  draw() {
    const { job, trouble } = this;
    const finished = job ? isFinished(job) : trouble?.status != null;
    const done = job?.status === "succeeded";
    say(this.part("state"), trouble?.message ?? stateOf(job));
    this.part("state").classList.toggle("wrong", Boolean(trouble) || job?.status === "failed");
    this.part("numbers").textContent = job?.iteration ? this.numbers() : "";
    this.part("progress").hidden = finished;
    if (job?.iteration) this.part("progress").value = job.iteration / job.iterations;
    this.part("handle").hidden = !this.kept.photo || !job?.iteration;
    const finest = job?.parameters.method === "refine" ? t("styleAtWork") : t("paintedAs", { title: this.kept.title });
    this.part("result").alt = done ? finest : t("onTheWay");
    this.part("before").alt = t("before");
    this.part("stop").hidden = finished;
    this.part("save").hidden = !done;
    this.part("remove").hidden = !finished;
    if (job) this.curve.draw(job.iterations);
  }

  numbers() {
    const { iteration, iterations, loss, status } = this.job;
    const told = [t("evaluations", { iteration, iterations })];
    if (loss) told.push(t("loss", { loss: short(loss.total) }));
    if (status === "running" && this.etaS !== null) told.push(t("left", { seconds: Math.ceil(this.etaS) }));
    return told.join(" · ");
  }

  async stop() {
    this.part("stop").disabled = true;
    try {
      await cancel(this.kept.id);
    } catch (error) {
      this.trouble = error;
      this.draw();
    } finally {
      this.part("stop").disabled = false;
    }
  }

  async save() {
    try {
      saveFile(await resultOf(this.kept.id), this.kept.title);
    } catch (error) {
      this.trouble = error;
      this.draw();
    }
  }

  leave() {
    this.leaving.abort();
    this.element.remove();
  }
}

function stateOf(job) {
  if (!job) return t("asking");
  if (job.status === "queued") return t("queued", { position: job.position });
  if (job.status === "failed") return t("failed", { detail: said(job.error) });
  return t(job.status);
}

/** Said aloud only where it is something new. */
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
