// Pictures into images, and onto the disk.

const KEPT_MS = 60_000; // time for the browser to begin to save

export function show(image, blob) {
  if (image.src.startsWith("blob:")) URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(blob);
}

/** `name` becomes a file's: letters and digits of any script, and the suffix of what it is. */
export function saveFile(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob) });
  const suffix = blob.type.split("/")[1].replace("jpeg", "jpg");
  link.download = `${name.replace(/[^\p{L}\p{N}_]+/gu, "-").replace(/^-|-$/g, "") || "painting"}.${suffix}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), KEPT_MS);
}
