// A picture over its photo: how much of the photo is seen, from the left, is a slider's.

/** Wire a stage's handle. */
export function watchHandle(stage) {
  const handle = stage.querySelector(".handle");
  handle.addEventListener("input", () => stage.style.setProperty("--at", `${handle.value}%`));
}

/** So many percent of the photo. */
export function uncover(stage, percent) {
  stage.querySelector(".handle").value = percent;
  stage.style.setProperty("--at", `${percent}%`);
}
