// A photo comes in: chosen, dropped, pasted or taken; and is shrunk here, so that a preview uploads little.

import { Problem } from "/web/service.js";
import { t } from "/web/strings.js";

const TYPES = ["image/jpeg", "image/png", "image/webp"];
const $ = (id) => document.getElementById(id);

export class Photo {
  /** Raises Problem where the browser cannot open it. */
  static async open(blob) {
    if (!TYPES.includes(blob?.type)) throw new Problem(t("notAnImage"));
    try {
      return new Photo(blob, await createImageBitmap(blob));
    } catch {
      throw new Problem(t("unreadable"));
    }
  }

  constructor(blob, bitmap) {
    this.blob = blob;
    this.bitmap = bitmap;
    this.small = new Map();
  }

  /** The photo with its longer side at most `side` pixels, as a Blob; upright. */
  async within(side) {
    if (!this.small.has(side)) this.small.set(side, this.shrunk(side));
    return this.small.get(side);
  }

  size(side) {
    const scale = Math.min(1, side / Math.max(this.bitmap.width, this.bitmap.height));
    return [this.bitmap.width, this.bitmap.height].map((length) => Math.max(1, Math.round(length * scale)));
  }

  async shrunk(side) {
    const [width, height] = this.size(side);
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(this.bitmap, 0, 0, width, height);
    return blobOf(canvas, this.blob.type === "image/jpeg" ? "image/jpeg" : "image/png");
  }
}

export const blobOf = (canvas, type) => new Promise((resolve) => canvas.toBlob(resolve, type, 0.92));

/** Call `take(blob)` for every photo that comes in, `fail(problem)` where the camera is refused. */
export function watchForPhotos(take, fail) {
  $("file").addEventListener("change", () => {
    const [file] = $("file").files;
    $("file").value = ""; // so that the same file may be chosen again
    if (file) take(file);
  });
  $("example").addEventListener("click", async () => {
    const response = await fetch("/web/example.jpg").catch(() => null);
    response?.ok ? take(await response.blob()) : fail(new Problem(t("unreachable")));
  });
  document.addEventListener("paste", (event) => event.clipboardData.files[0] && take(event.clipboardData.files[0]));
  const over = (is) => document.body.classList.toggle("over", is);
  document.addEventListener("dragover", (event) => { event.preventDefault(); over(true); });
  document.addEventListener("dragleave", (event) => event.relatedTarget === null && over(false));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    over(false);
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  });
  watchCamera(take, fail);
}

function watchCamera(take, fail) {
  const [dialog, video] = [$("camera-dialog"), $("video")];
  $("camera").addEventListener("click", async () => {
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: 1920 } });
      dialog.showModal();
    } catch {
      fail(new Problem(t("cameraRefused")));
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
