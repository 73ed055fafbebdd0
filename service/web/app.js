// The page, wired: a photo, a mix, a look and a mask become a picture, live and at full size.

import { Brush } from "/web/brush.js";
import { uncover, watchHandle } from "/web/compare.js";
import { saveFile, show } from "/web/files.js";
import { Live } from "/web/live.js";
import { Looks } from "/web/looks.js";
import { Mixer } from "/web/mixer.js";
import { Own, PAINTING } from "/web/own.js";
import { isClip, Photo, PREVIEW_SIDE, watchForPhotos } from "/web/photo.js";
import { loadStyles, stylise } from "/web/service.js";
import { named, preferred, speak, t } from "/web/strings.js";
import { Workshop } from "/web/workshop.js";

const $ = (id) => document.getElementById(id);
const MASK_SIDE = 512; // pixels
const FALLBACK_SIDE = 2048; // where the service does not make a picture as large as the photo
const MOVING_SIDE = 512; // the same of what moves: all of its frames count
const TOO_LARGE = ["too_many_pixels", "too_many_bytes", "gatys_unavailable"]; // the last: no workers for large pictures
const INSTALL_TRIES = 10;
const INSTALL_MS = 1000;
let photo = null;
let retrying = null;
let known = ""; // the styles as they were listed last
let shelf = { styles: [], style_image: [] }; // the same, as the service told it

const live = new Live(paint, failed);
const brush = new Brush(wish);
const looks = new Looks(wish);
const mixer = new Mixer(chosen);
const workshop = new Workshop(() => photo, () => brush.blob(), () => looks.color, styleMade);
const own = new Own(paintingChosen, (job) => workshop.jobs.add(job), () => refresh());

async function order(image, side) {
  const fields = { style: mixer.mix, ...looks.fields(side) };
  if (photo.moves) fields.stroke = ""; // its strokes are the network's own
  return { image, mask: await brush.blob(), style_image: await own.file(fields), fields };
}

/** A painting was brought in: it is a style like the others, and what one wants to see now. */
function paintingChosen() {
  offer(shelf);
  if (mixer.weights.size === 1) mixer.choose(PAINTING, [...mixer.weights.keys()][0]);
  else mixer.choose(PAINTING, PAINTING);
  chosen();
}

/** A job has made a style: it is in the gallery soon, and takes the place of its painting. */
async function styleMade(name) {
  for (let tries = 0; tries < INSTALL_TRIES && !mixer.styles.has(name); tries++) {
    await refresh().catch(() => {});
    if (!mixer.styles.has(name)) await new Promise((resolve) => setTimeout(resolve, INSTALL_MS));
  }
  if (!mixer.styles.has(name) || !mixer.weights.has(PAINTING)) return;
  mixer.choose(name, PAINTING);
  own.forget();
  offer(shelf);
  chosen();
}

function wish() {
  clearTimeout(retrying);
  if (!photo || !mixer.styles.size) return;
  if (mixer.mix) live.wish();
  else { live.stop(); say(t("chooseStyle")); }
}

function chosen() {
  $("gallery-status").textContent = "";
  looks.fit(mixer.chosen);
  wish();
}

async function paint(side, signal) {
  const started = performance.now();
  $("stage").setAttribute("aria-busy", "true");
  const { blob, style } = await stylise(await order(await photo.within(side), Math.max(...photo.size(side))), signal);
  signal.throwIfAborted();
  show($("result"), blob);
  $("result").alt = t("after", { style: mixer.titleOf(style) });
  $("stage").removeAttribute("aria-busy");
  say(t("done", { style: mixer.titleOf(style), seconds: ((performance.now() - started) / 1000).toFixed(1) }));
}

async function download() {
  live.stop(); // what comes back is finer than what it would have brought
  $("download").disabled = true;
  say(t("paintingFull"));
  try {
    const { blob, style } = await paintFull();
    saveFile(blob, style);
    await finished(blob);
  } catch (error) {
    failed(error);
  } finally {
    $("stage").removeAttribute("aria-busy");
    $("download").disabled = false;
  }
}

/** The picture at full size is here, and saved; a clip plays below its first frame. */
async function finished(blob) {
  $("film").hidden = !isClip(blob);
  show(isClip(blob) ? $("film") : $("result"), blob);
  if (isClip(blob)) return say(t("savedClip"));
  const { width, height } = await createImageBitmap(blob);
  const whole = width === photo.width && height === photo.height;
  say(t(whole ? "saved" : "savedSmaller", { width, height }));
}

/** As large as the photo, with the preview's strokes; or as large as the service makes it. */
async function paintFull() {
  const side = Math.max(photo.width, photo.height);
  const fallback = photo.moves ? MOVING_SIDE : FALLBACK_SIDE;
  try {
    return await paintWithin(photo.isTaken ? side : Math.min(side, fallback));
  } catch (error) {
    if (!TOO_LARGE.includes(error.code) || side <= fallback) throw error;
    return paintWithin(fallback);
  }
}

async function paintWithin(side) {
  const whole = side >= Math.max(photo.width, photo.height);
  const asked = await order(whole || photo.moves ? photo.blob : await photo.shrunk(side), side);
  const progress = (share) => say(t("paintingTiles", { percent: Math.round(100 * share) }));
  return stylise({ ...asked, fields: { ...asked.fields, max_side: side } }, undefined, progress);
}

async function take(blob) {
  try {
    photo = await Photo.open(blob);
  } catch (error) {
    failed(error);
    return;
  }
  brush.begin(photo.size(MASK_SIDE));
  frame(photo);
  $("film").hidden = true;
  const small = await photo.within(PREVIEW_SIDE);
  for (const id of ["before", "result"]) show($(id), small);
  $("before").alt = t("before");
  uncover($("stage"), 0);
  visible(true);
  note();
  say(t("painting"));
  wish();
}

/** The stage has the photo's shape and size before any picture of it is there, whatever that one's size. */
function frame({ width, height }) {
  $("stage").style.setProperty("--width", `${width}px`);
  $("stage").style.setProperty("--ratio", width / height);
}

/** Said before anything is sent. */
function note() {
  for (const stroke of document.querySelectorAll("input[name=stroke]")) stroke.disabled = photo.moves;
  if (photo.moves) return void ($("photo-note").textContent = t("movingPhoto"));
  const megapixels = Math.round(photo.width * photo.height / 1e6);
  $("photo-note").textContent = photo.isTaken ? "" : t("largePhoto", { megapixels, side: FALLBACK_SIDE });
}

function visible(hasPhoto) {
  $("drop").hidden = hasPhoto;
  $("stage").hidden = $("after-photo").hidden = !hasPhoto;
}

function another() {
  live.stop();
  photo = null;
  brush.open(false);
  $("photo-note").textContent = "";
  $("film").hidden = true;
  visible(false);
  say("");
}

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
  $("again").hidden = !wrong;
}

function failed(error) {
  $("stage").removeAttribute("aria-busy");
  if (error.retryAfter) {
    say(t("busy", { seconds: error.retryAfter }));
    retrying = setTimeout(wish, 1000 * error.retryAfter);
  } else {
    say(error.message, true);
    if (error.status === 404 || error.status === 422) refresh().catch((again) => say(again.message, true));
  }
}

/** The store may have changed since the gallery was drawn. */
async function refresh() {
  const gone = offer(await loadStyles());
  if (!gone.length) return;
  $("gallery-status").textContent = t("styleGone", { titles: gone.join(", ") });
  wish();
}

/** These are the styles now; gives the titles of those that were chosen and are gone. */
function offer(told) {
  shelf = told;
  own.offer(told.styles, told.style_image);
  const shipped = told.styles.map(named);
  const styles = [...own.asStyles, ...shipped];
  const listed = JSON.stringify(styles);
  if (listed === known) return [];
  known = listed;
  const gone = mixer.offer(styles);
  looks.offer(styles);
  looks.fit(mixer.chosen);
  workshop.offer(shipped);
  return gone;
}

async function start() {
  $("gallery-status").textContent = t("loading");
  try {
    offer(await loadStyles());
    $("gallery-status").textContent = "";
    wish();
  } catch (error) {
    $("gallery-status").textContent = error.retryAfter ? t("waiting") : error.message;
    setTimeout(start, 1000 * (error.retryAfter ?? 3));
  }
}

function speakIn(language) {
  speak(language);
  offer(shelf);
  mixer.draw();
  looks.draw();
  looks.fit(mixer.chosen);
  workshop.speak();
  if (photo) note();
}

watchHandle($("stage"));
$("language").value = preferred();
speakIn($("language").value);
$("language").addEventListener("change", () => speakIn($("language").value));
$("controls").addEventListener("submit", (event) => event.preventDefault());
$("download").addEventListener("click", download);
$("again").addEventListener("click", wish);
$("another").addEventListener("click", another);
watchForPhotos(take, failed);
start();
