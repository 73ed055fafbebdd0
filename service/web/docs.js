// An interactive reference from /openapi.json: each operation with a form that sends it.

const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

function field({ name, schema = {}, required, description, in: where }) {
  const input = schema.enum
    ? make("select", {}, make("option", { value: "" }, "(default)"), ...schema.enum.map((value) => make("option", { value }, value)))
    : make("input", { placeholder: String(schema.default ?? schema.examples?.[0] ?? "") });
  Object.assign(input, { name, required: Boolean(required) });
  input.dataset.where = where;
  const about = description ?? schema.description ?? "";
  return make("label", { className: "field" }, make("span", { className: "mono" }, name), input, make("small", {}, about));
}

function operation(path, method, spec) {
  const parameters = (spec.parameters ?? []).map(field);
  const form = make("form", {}, ...parameters);
  const takesImage = Boolean(spec.requestBody);
  if (takesImage) {
    const file = make("input", { type: "file", name: "body", required: true, accept: "image/jpeg,image/png,image/webp" });
    form.append(make("label", { className: "field" }, make("span", { className: "mono" }, "the image"), file));
  }
  const answer = make("div", { ariaLive: "polite" });
  form.append(make("button", { className: "primary" }, "Send"), answer);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(path, method, form, answer);
  });
  const summary = make("summary", {}, make("b", {}, method.toUpperCase()), make("code", {}, path), ` ${spec.summary ?? ""}`);
  return make("details", {}, summary, make("p", {}, spec.description ?? ""), form);
}

async function send(path, method, form, answer) {
  const query = new URLSearchParams();
  const headers = {};
  for (const input of form.querySelectorAll("[data-where]")) {
    if (input.value === "") continue;
    if (input.dataset.where === "path") path = path.replace(`{${input.name}}`, encodeURIComponent(input.value));
    else if (input.dataset.where === "header") headers[input.name] = input.value;
    else query.append(input.name, input.value);
  }
  const body = form.elements.body?.files[0];
  if (body) headers["Content-Type"] = body.type;
  const target = query.size ? `${path}?${query}` : path;
  answer.replaceChildren(make("p", {}, "Sent…"));
  try {
    const response = await fetch(target, { method, headers, body });
    const lines = [`${response.status} ${response.statusText}`, ...[...response.headers].map(([name, value]) => `${name}: ${value}`)];
    answer.replaceChildren(make("pre", {}, `${method.toUpperCase()} ${target}\n\n${lines.join("\n")}`), await shown(response));
  } catch (error) {
    answer.replaceChildren(make("p", { className: "wrong" }, error.message));
  }
}

async function shown(response) {
  const type = response.headers.get("Content-Type") ?? "";
  if (type.startsWith("image/")) return make("img", { src: URL.createObjectURL(await response.blob()), alt: "The answer" });
  const text = await response.text();
  return make("pre", {}, type.includes("json") ? JSON.stringify(JSON.parse(text), null, 2) : text);
}

async function fill() {
  const schema = await (await fetch("/openapi.json")).json();
  const operations = Object.entries(schema.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, spec]) => operation(path, method, spec)));
  document.getElementById("operations").replaceChildren(...operations);
  operations[0].open = true;
  const row = ({ status, code, title }) => make("tr", { id: code }, make("td", {}, String(status)), make("td", {}, make("code", {}, code)), make("td", {}, title));
  document.getElementById("problems").replaceChildren(...schema["x-problems"].map(row));
  document.getElementById(location.hash.slice(1))?.scrollIntoView();
  const styles = await fetch("/styles").then((response) => (response.ok ? response.json() : { styles: [] }));
  const style = styles.styles[0]?.name ?? "starry_night";
  document.getElementById("curl").textContent =
    `curl --data-binary @photo.jpg '${location.origin}/stylize?style=${style}' -H 'Content-Type: image/jpeg' > out.jpg\n` +
    `curl -F image=@photo.jpg -F style=${style} -F strength=0.8 ${location.origin}/stylize > out.jpg`;
}

fill();
