// The page, wired: a photo, a mix, a look and a mask become a picture, live and at full size.

import { Brush } from "/web/brush.js";
import { Live } from "/web/live.js";
import { Mixer } from "/web/mixer.js";
import { Photo, watchForPhotos } from "/web/photo.js";
import { loadStyles, stylise } from "/web/service.js";
import { preferred, speak, t } from "/web/strings.js";

const $ = (id) => document.getElementById(id);
const MASK_SIDE = 512; // pixels
const PREVIEW_SIDE = 1024;
const LARGEST_STROKE = 16;
let photo = null;
let mixer = null;
let retrying = null;

const live = new Live(paint, failed);
const brush = new Brush(wish);

async function order(image) {
  const fields = {
    style: mixer.mix,
    strength: $("strength").value / 100,
    preserve_color: document.querySelector("input[name=color]:checked").value,
  };
  return { image, fields, mask: await brush.blob() };
}

function wish() {
  clearTimeout(retrying);
  if (!photo || !mixer) return;
  if (mixer.mix) live.wish();
  else { live.stop(); say(t("chooseStyle")); }
}

async function paint(side, signal) {
  const started = performance.now();
  $("stage").setAttribute("aria-busy", "true");
  const { blob, style } = await stylise(await order(await photo.within(side)), signal);
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
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob) });
    link.download = `${style.replace(/[^a-z0-9_]+/g, "-")}.${blob.type.split("/")[1].replace("jpeg", "jpg")}`;
    link.click();
    show($("result"), blob);
    const { width, height } = await createImageBitmap(blob);
    say(t("saved", { width, height }));
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  } catch (error) {
    failed(error);
  } finally {
    $("stage").removeAttribute("aria-busy");
    $("download").disabled = false;
  }
}

/** As large as the photo, with the preview's strokes; or as large as the server makes it. */
async function paintFull() {
  const whole = await order(photo.blob);
  const side = Math.max(...photo.size(Infinity));
  const stroke = Math.min(LARGEST_STROKE, Math.max(1, side / PREVIEW_SIDE));
  const progress = (share) => say(t("paintingTiles", { percent: Math.round(100 * share) }));
  try {
    return await stylise({ ...whole, fields: { ...whole.fields, max_side: side, stroke } }, undefined, progress);
  } catch (error) {
    if (error.code !== "too_many_pixels") throw error;
    return stylise(whole);
  }
}

async function take(blob) {
  try {
    photo = await Photo.open(blob);
  } catch (error) {
    failed(error);
    return;
  }
  brush.begin(photo.size(MASK_SIDE));
  const small = await photo.within(PREVIEW_SIDE);
  for (const id of ["before", "result"]) show($(id), small);
  $("before").alt = t("before");
  $("handle").value = 0;
  compare();
  visible(true);
  say(t("painting"));
  wish();
}

function visible(hasPhoto) {
  $("drop").hidden = hasPhoto;
  $("stage").hidden = $("after-photo").hidden = !hasPhoto;
}

function show(image, blob) {
  URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(blob);
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
  }
}

function compare() {
  $("stage").style.setProperty("--at", `${$("handle").value}%`);
}

async function start() {
  $("loading").textContent = t("loading");
  try {
    const styles = await loadStyles();
    mixer = new Mixer(styles, wish);
    $("loading").textContent = "";
    wish();
  } catch (error) {
    $("loading").textContent = error.retryAfter ? t("waiting") : error.message;
    setTimeout(start, 1000 * (error.retryAfter ?? 3));
  }
}

$("language").value = preferred();
speak($("language").value);
$("language").addEventListener("change", () => { speak($("language").value); mixer?.draw(); });
$("strength").addEventListener("input", () => { $("strength-value").value = `${$("strength").value} %`; wish(); });
$("controls").addEventListener("change", (event) => event.target.name === "color" && wish());
$("controls").addEventListener("submit", (event) => event.preventDefault());
$("handle").addEventListener("input", compare);
$("download").addEventListener("click", download);
$("again").addEventListener("click", wish);
$("another").addEventListener("click", () => { live.stop(); photo = null; $("brush-set").disabled = true; visible(false); say(""); });
watchForPhotos(take, failed);
start();
