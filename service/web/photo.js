// A photo comes in: chosen, dropped, pasted or taken; and is shrunk here, so that a preview uploads little.

import { Problem } from "/web/service.js";
import { t } from "/web/strings.js";

export const PREVIEW_SIDE = 1024; // pixels, the longer side
const TYPES = ["image/jpeg", "image/png", "image/webp", "image/gif", "video/mp4", "video/quicktime"];
const HEAD = 4096; // bytes that say whether a PNG or WebP moves
const TAKEN = { pixels: 2 ** 26, bytes: 2 ** 25 }; // what the service takes in, by default
const QUALITY = 0.92;
const $ = (id) => document.getElementById(id);

export class Photo {
  /** Only what a preview needs of it is kept decoded. Raises Problem where the browser cannot open it. */
  static async open(blob) {
    if (!TYPES.includes(blob?.type)) throw new Problem(t("notAnImage"));
    try {
      const frame = isClip(blob) ? await firstFrame(blob) : null;
      const [width, height] = frame ? [frame.width, frame.height] : await measured(blob);
      const photo = new Photo(blob, width, height);
      photo.still = frame ?? blob;
      photo.moves = await isMoving(blob);
      photo.bitmap = await photo.decoded(PREVIEW_SIDE);
      photo.type = blob.type === "image/jpeg" || isOpaque(photo.bitmap) ? "image/jpeg" : "image/png";
      return photo;
    } catch {
      throw new Problem(t("unreadable"));
    }
  }

  constructor(blob, width, height) {
    Object.assign(this, { blob, width, height });
    this.small = new Map();
  }

  /** The file's name without its suffix; undefined for what was pasted or taken. */
  get name() {
    return this.blob.name?.replace(/\.[^.]*$/, "");
  }

  /** Whether the service takes the file as it is, by its defaults. */
  get isTaken() {
    return this.width * this.height <= TAKEN.pixels && this.blob.size <= TAKEN.bytes;
  }

  /** The photo with its longer side at most `side` pixels, up to PREVIEW_SIDE, as a Blob; upright. */
  async within(side) {
    if (!this.small.has(side)) this.small.set(side, blobOf(drawn(this.bitmap, this.size(side)), this.type));
    return this.small.get(side);
  }

  /** The photo as it is sent for a result of so many pixels: no larger than it need be, or than the service takes. */
  async sized(side) {
    if (side <= PREVIEW_SIDE) return this.within(side);
    return this.isTaken && !this.moves ? this.blob : this.shrunk(side);
  }

  /** A copy within `side`, from the file. */
  async shrunk(side) {
    return blobOf(drawn(await this.decoded(side), this.size(side)), this.type);
  }

  /** (width, height) within `side`. */
  size(side) {
    const scale = Math.min(1, side / Math.max(this.width, this.height));
    return [this.width, this.height].map((length) => Math.max(1, Math.round(length * scale)));
  }

  /** A small JPEG that can be kept as text. */
  dataUrl(side) {
    return drawn(this.bitmap, this.size(side)).toDataURL("image/jpeg", 0.8);
  }

  decoded(side) {
    const [resizeWidth, resizeHeight] = this.size(side);
    return createImageBitmap(this.still, { resizeWidth, resizeHeight, resizeQuality: "medium" });
  }
}

export const blobOf = (canvas, type) => new Promise((resolve) => canvas.toBlob(resolve, type, QUALITY));

export const isClip = (blob) => blob.type.startsWith("video/");

/** Whether it is answered as an animation or a clip. */
async function isMoving(blob) {
  if (isClip(blob) || blob.type === "image/gif") return true;
  const head = new Uint8Array(await blob.slice(0, HEAD).arrayBuffer());
  if (blob.type === "image/webp") return String.fromCharCode(...head.slice(12, 16)) === "VP8X" && (head[20] & 2) !== 0;
  return blob.type === "image/png" && new TextDecoder("latin1").decode(head).split("IDAT")[0].includes("acTL");
}

/** The first picture of a clip, upright. */
async function firstFrame(blob) {
  const video = Object.assign(document.createElement("video"), { muted: true, playsInline: true, preload: "auto" });
  video.src = URL.createObjectURL(blob);
  try {
    await new Promise((resolve, reject) => Object.assign(video, { onloadeddata: resolve, onerror: reject }));
    return await createImageBitmap(video);
  } finally {
    URL.revokeObjectURL(video.src);
  }
}

/** Width and height from the file's head, upright: an <img> decodes no pixels before it is painted. */
async function measured(blob) {
  const image = new Image();
  image.src = URL.createObjectURL(blob);
  try {
    await new Promise((resolve, reject) => Object.assign(image, { onload: resolve, onerror: reject }));
    return [image.naturalWidth, image.naturalHeight];
  } finally {
    URL.revokeObjectURL(image.src);
  }
}

function drawn(bitmap, [width, height]) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  return canvas;
}

function isOpaque(bitmap) {
  const { data } = drawn(bitmap, [bitmap.width, bitmap.height]).getContext("2d").getImageData(0, 0, bitmap.width, bitmap.height);
  return data.every((value, index) => index % 4 !== 3 || value === 255);
}

/** Call `take(file)` for what is chosen with a file input; the same file may be chosen again. */
export function onChosen(input, take) {
  input.addEventListener("change", () => {
    const [file] = input.files;
    input.value = "";
    if (file) take(file);
  });
}

/** Call `take(file)` for what is dropped there. */
export function onDrop(element, take) {
  element.addEventListener("drop", (event) => {
    if (event.defaultPrevented) return; // it fell onto something smaller
    event.preventDefault();
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  });
}

/** Call `take(blob)` for every photo that comes in, `fail(problem)` where the camera is refused. */
export function watchForPhotos(take, fail) {
  onChosen($("file"), take);
  $("example").addEventListener("click", async () => {
    const response = await fetch("/web/example.jpg").catch(() => null);
    response?.ok ? take(await response.blob()) : fail(new Problem(t("unreachable")));
  });
  document.addEventListener("paste", (event) => event.clipboardData.files[0] && take(event.clipboardData.files[0]));
  const over = (is) => document.body.classList.toggle("over", is);
  document.addEventListener("dragover", (event) => { event.preventDefault(); over(true); });
  document.addEventListener("dragleave", (event) => event.relatedTarget === null && over(false));
  document.addEventListener("drop", () => over(false));
  onDrop(document, take);
  watchCamera(take, fail);
}

function watchCamera(take, fail) {
  const [dialog, video] = [$("camera-dialog"), $("video")];
  $("camera").addEventListener("click", async () => {
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: 1920 } });
      dialog.showModal();
    } catch (error) {
      fail(new Problem(t(REFUSALS[error.name] ?? "cameraRefused")));
    }
  });
  $("snap").addEventListener("click", async () => {
    const canvas = Object.assign(document.createElement("canvas"), { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    dialog.close();
    take(await blobOf(canvas, "image/jpeg"));
  });
  $("camera-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => video.srcObject?.getTracks().forEach((track) => track.stop()));
}

const REFUSALS = {
  NotFoundError: "cameraMissing",
  NotReadableError: "cameraBusy",
  TypeError: "cameraInsecure", // without HTTPS a browser has no camera to ask for, but on the machine itself
};
