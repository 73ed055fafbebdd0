// The page's whole behaviour: a photo, a style and a strength go to POST /stylize, a picture comes back.

const $ = (id) => document.getElementById(id);
const state = { photo: null, photoUrl: null, resultUrl: null, running: null };

function choosePhoto(blob) {
  if (!blob || !["image/jpeg", "image/png", "image/webp"].includes(blob.type)) {
    say("That is not a JPEG, PNG or WebP image.", true);
    return;
  }
  if (state.photoUrl) URL.revokeObjectURL(state.photoUrl);
  state.photo = blob;
  state.photoUrl = URL.createObjectURL(blob);
  const preview = document.createElement("img");
  preview.src = state.photoUrl;
  preview.alt = "Your photo";
  $("drop").querySelector("img")?.remove();
  $("drop").prepend(preview);
  refresh();
  say(chosenStyle() ? "Ready." : "Now choose a style.");
}

function chosenStyle() {
  return document.querySelector("input[name=style]:checked")?.value;
}

function refresh() {
  $("go").disabled = !(state.photo && chosenStyle());
  $("strength-value").value = `${Math.round($("strength").value * 100)} %`;
}

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

function styleCard(style) {
  const card = document.createElement("label");
  card.className = "style";
  const radio = Object.assign(document.createElement("input"), { type: "radio", name: "style", value: style.name });
  const image = Object.assign(document.createElement("img"), { src: style.links.preview, alt: "", loading: "lazy" });
  const text = document.createElement("span");
  const painter = document.createElement("small");
  painter.textContent = `${style.artist}, ${style.year}`;
  text.append(style.title, painter);
  card.title = style.credit;
  card.append(radio, image, text);
  return card;
}

async function problemOf(response) {
  const problem = await response.json().catch(() => ({}));
  const again = response.headers.get("Retry-After");
  return (problem.detail ?? `The server answered ${response.status}.`) + (again ? ` Try again in ${again} s.` : "");
}

async function loadStyles() {
  try {
    const response = await fetch("/styles");
    if (response.status === 503) {
      $("styles").firstElementChild.textContent = `Not ready yet: ${await problemOf(response)}`;
      setTimeout(loadStyles, 1000 * Number(response.headers.get("Retry-After") ?? 1));
      return;
    }
    if (!response.ok) throw new Error(await problemOf(response));
    $("styles").replaceChildren(...(await response.json()).styles.map(styleCard));
  } catch (error) {
    $("styles").firstElementChild.textContent = `The styles could not be loaded: ${error.message}`;
  }
}

async function stylise() {
  state.running?.abort();
  const running = (state.running = new AbortController());
  const query = new URLSearchParams({ style: chosenStyle(), strength: $("strength").value });
  say("Painting…");
  $("form").setAttribute("aria-busy", "true");
  const started = performance.now();
  try {
    const response = await fetch(`/stylize?${query}`, {
      method: "POST", body: state.photo, headers: { "Content-Type": state.photo.type }, signal: running.signal,
    });
    if (!response.ok) throw new Error(await problemOf(response));
    show(await response.blob(), response.headers.get("X-Style"), response.headers.get("X-Model"));
    say(`Done in ${((performance.now() - started) / 1000).toFixed(1)} s.`);
  } catch (error) {
    if (error.name !== "AbortError") say(error.message, true);
  } finally {
    if (state.running === running) $("form").removeAttribute("aria-busy");
  }
}

function show(blob, style, model) {
  if (state.resultUrl) URL.revokeObjectURL(state.resultUrl);
  state.resultUrl = URL.createObjectURL(blob);
  $("picture").src = state.resultUrl;
  $("picture").alt = `Your photo in the style ${style}`;
  $("caption").textContent = `${style}, by ${model}`;
  $("download").href = state.resultUrl;
  $("download").download = `${style.replace(/[^a-z0-9_]+/g, "-")}.${blob.type.split("/")[1]}`;
  for (const id of ["figure", "download", "compare"]) $(id).hidden = false;
}

const showPhoto = (held) => { $("picture").src = held ? state.photoUrl : state.resultUrl; };

$("file").addEventListener("change", () => $("file").files[0] && choosePhoto($("file").files[0]));
$("example").addEventListener("click", async () => choosePhoto(await (await fetch("/web/example.jpg")).blob()));
$("form").addEventListener("input", refresh);
$("form").addEventListener("submit", (event) => { event.preventDefault(); stylise(); });
document.addEventListener("paste", (event) => event.clipboardData.files[0] && choosePhoto(event.clipboardData.files[0]));
document.addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
document.addEventListener("dragleave", () => $("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  choosePhoto(event.dataTransfer.files[0]);
});
for (const [down, up] of [["pointerdown", "pointerup"], ["keydown", "keyup"], ["pointerdown", "pointerleave"], ["keydown", "blur"]]) {
  $("compare").addEventListener(down, (event) => event.key !== "Tab" && showPhoto(true));
  $("compare").addEventListener(up, () => showPhoto(false));
}
loadStyles();
