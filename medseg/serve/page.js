// Sends an image to the server and draws the classes that come back over it.
const at = (id) => document.getElementById(id);
const switches = [...document.querySelectorAll("input.class")];
const canvas = at("canvas");
const tint = document.createElement("canvas"); // the colours of the classes that are on
let shown = null; // {name, image, classes, mask} of the last answer
let waiting = null; // the request on its way

const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const png = (text) => new Blob([bytes(text)], { type: "image/png" });
const picture = (text) => createImageBitmap(png(text), { colorSpaceConversion: "none" });
const percent = (share) => `${(100 * share).toFixed(share < 0.01 ? 2 : 1)} %`;
const stem = (name) => name.replace(/\.[^.]*$/, "") || "image";

async function send(file) {
  if (!file) return;
  waiting?.abort();
  const own = (waiting = new AbortController());
  say(`${file.name} …`);
  try {
    const most = Number(at("file").dataset.most);
    if (file.size > most * 1e6) throw new Error(`${file.name} is larger than ${most} MB.`);
    const form = new FormData();
    form.append("image", file);
    const start = performance.now();
    const address = "predict?write=view";
    const answer = await fetch(address, { method: "POST", body: form, signal: own.signal });
    const found = await answer.json().catch(() => ({ error: `the server answers ${answer.status}.` }));
    if (!answer.ok) throw new Error(found.error);
    const seconds = (performance.now() - start) / 1000;
    await take(file.name, found);
    say(`${file.name}: ${found.width}x${found.height} pixels in ${seconds.toFixed(2)} s`);
  } catch (error) {
    if (waiting !== own) return; // another image took its place
    say("", error instanceof TypeError ? "The server does not answer; is it running?" : error.message);
  }
}

function say(status, error = "") {
  at("status").textContent = status;
  at("error").textContent = error;
  at("error").hidden = !error;
  if (error) at("result").hidden = true;
}

async function take(name, found) {
  const [image, labels] = await Promise.all([picture(found.image), picture(found.classes)]);
  const { width, height } = image;
  for (const each of [canvas, tint]) Object.assign(each, { width, height });
  const pen = tint.getContext("2d", { willReadFrequently: true });
  pen.drawImage(labels, 0, 0);
  const classes = pen.getImageData(0, 0, width, height).data.filter((_, i) => i % 4 === 0);
  shown = { name, image, classes, mask: png(found.mask) };
  const shares = found.pixels.map((count) => count / (found.width * found.height));
  for (const each of switches) {
    each.closest("label").querySelector(".share").textContent = percent(shares[each.dataset.index]);
  }
  at("result").hidden = false;
  colour();
}

function colour() {
  if (!shown) return;
  const colours = new Uint8ClampedArray(4 * 256);
  const on = switches.filter((each) => each.checked);
  for (const each of on) {
    const swatch = each.closest("label").querySelector(".swatch");
    const text = getComputedStyle(swatch).getPropertyValue("--b").trim();
    const parts = [1, 3, 5].map((place) => parseInt(text.slice(place, place + 2), 16));
    colours.set([...parts, 255], 4 * each.dataset.index);
  }
  const words = new Uint32Array(colours.buffer);
  const pixels = Uint32Array.from(shown.classes, (label) => words[label]);
  const data = new ImageData(new Uint8ClampedArray(pixels.buffer), tint.width, tint.height);
  tint.getContext("2d").putImageData(data, 0, 0);
  const names = on.map((each) => each.closest("label").querySelector(".name").textContent);
  canvas.setAttribute("aria-label", `${shown.name}, coloured: ${names.join(", ") || "nothing"}`);
  draw();
}

function draw() {
  const opacity = at("opacity").value;
  at("percent").textContent = `${opacity} %`;
  if (!shown) return;
  const pen = canvas.getContext("2d");
  pen.globalAlpha = 1;
  pen.drawImage(shown.image, 0, 0);
  pen.globalAlpha = opacity / 100;
  pen.drawImage(tint, 0, 0);
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

at("file").addEventListener("change", (event) => send(event.target.files[0]));
at("upload").addEventListener("submit", (event) => event.preventDefault());
at("mask").addEventListener("click", () => save(shown.mask, `${stem(shown.name)}.png`));
at("overlay").addEventListener("click", () =>
  canvas.toBlob((blob) => save(blob, `${stem(shown.name)}_overlay.png`)),
);
at("opacity").addEventListener("input", draw);
for (const each of switches) each.addEventListener("change", colour);
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.toggle("dragging", kind === "dragenter" || kind === "dragover");
    if (kind !== "drop" || !event.dataTransfer.files.length) return;
    at("file").files = event.dataTransfer.files; // so that its name stands there
    send(event.dataTransfer.files[0]);
  });
}
draw();
