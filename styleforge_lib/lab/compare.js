// compare(a, b): two pictures of one size under one lens.
//
// State that Python also sees: wipe (0..100), mode ("wipe" | "side" | "difference"), gain (the difference's factor).
// State of the view alone: the lens { zoom, x, y }: zoom 1 fits the stage; (x, y) is the point of the picture, 0..1, in
// the middle of it. Both pictures are placed by the same lens, so they stay in step.

const MODES = { wipe: "Wipe", side: "Side by side", difference: "Difference" };
const TALLEST = 720; // CSS pixels
const PATIENCE = 4000; // ms until a kernel that sends no difference is taken for dead
const PIXELS_FROM = 3; // screen pixels to one of the picture: from here on the pixels are shown as squares

function render({ model, el }) {
  const [width, height] = model.get("size");
  const [nameA, nameB] = model.get("labels");
  const lens = { zoom: 1, x: 0.5, y: 0.5 };
  const urls = [];
  let waiting = null; // for the kernel's difference

  // ------------------------------------------------------------------ elements
  const picture = (trait, alt) => {
    const img = element("img", { alt, draggable: false });
    const load = () => {
      const bytes = model.get(trait);
      if (!bytes || bytes.byteLength === 0) return;
      const url = URL.createObjectURL(new Blob([bytes]));
      urls.push(url);
      img.src = url;
    };
    load();
    return { img, load };
  };
  const pane = (name, img, label) =>
    element("div", { className: `sf-pane ${name}` }, img, element("div", { className: "sf-label", textContent: label }));
  const a = picture("a", nameA);
  const b = picture("b", nameB);
  const difference = picture("difference", `difference of ${nameA} and ${nameB}`);
  const note = element("div", { className: "sf-note", textContent: "Computing the difference …" });
  const paneD = pane("d", difference.img, "");
  paneD.append(note);
  const handle = ownKeys(element("div", {
    className: "sf-handle", role: "slider", tabIndex: 0,
    "aria-label": `Wipe between ${nameA} and ${nameB}`, "aria-orientation": "horizontal", "aria-valuemin": 0, "aria-valuemax": 100,
  }));
  const knob = element("div", { className: "sf-knob" });
  knob.innerHTML =
    '<svg width="20" height="14" viewBox="0 0 20 14" fill="none" stroke="currentColor" stroke-width="2" aria-hidden="true">' +
    '<path d="M6 2 1.5 7 6 12M14 2l4.5 5L14 12"/></svg>';
  handle.append(knob);
  const stage = ownKeys(element("div", {
    className: "sf-stage", role: "group", tabIndex: 0,
    "aria-label": `${nameA} and ${nameB}. Plus and minus zoom, arrows move the picture, 0 fits it.`,
  }, pane("b", b.img, nameB), pane("a", a.img, nameA), paneD, handle));

  const modeButtons = Object.entries(MODES).map(([mode, text]) =>
    element("button", { type: "button", textContent: text, "data-mode": mode, onclick: () => setMode(mode) }));
  const zoomButton = (text, label, onclick) =>
    element("button", { type: "button", textContent: text, "aria-label": label, title: label, onclick });
  const percent = zoomButton("100 %", "Fit the picture", () => zoomTo(1));
  const gain = slider("Amplify", {
    min: 0, max: 6, value: Math.log2(model.get("gain")), text: (v) => `× ${2 ** v}`,
    onchange: (v) => { model.set("gain", 2 ** v); model.save_changes(); },
  });
  const figures = element("span", { className: "sf-figures", title: "From the exact pixels, 0..255 in each channel" });
  figures.append(...describe(model.get("figures")));
  const root = element("div", { className: "sf sf-compare" }, stage,
    element("div", { className: "sf-bar" },
      element("div", { className: "sf-group", role: "group", "aria-label": "View" }, ...modeButtons),
      element("div", { className: "sf-group", role: "group", "aria-label": "Zoom" },
        zoomButton("−", "Zoom out", () => zoomTo(lens.zoom / 1.5)), percent, zoomButton("+", "Zoom in", () => zoomTo(lens.zoom * 1.5))),
      gain.node, figures));
  el.append(root);
  Promise.all([a.img.decode(), b.img.decode()]).then(
    () => { root.dataset.ready = "true"; },
    () => { root.dataset.ready = "failed"; });

  // ------------------------------------------------------------------ drawing
  function draw() {
    const mode = model.get("mode");
    root.dataset.mode = mode;
    for (const button of modeButtons) button.setAttribute("aria-pressed", button.dataset.mode === mode);
    const wipe = model.get("wipe");
    root.style.setProperty("--wipe", `${wipe}%`);
    handle.setAttribute("aria-valuenow", Math.round(wipe));
    handle.setAttribute("aria-valuetext", `${Math.round(wipe)} % ${nameA}, ${100 - Math.round(wipe)} % ${nameB}`);
    root.style.setProperty("--gain", model.get("gain"));
    gain.set(Math.log2(model.get("gain")));
    gain.node.hidden = mode !== "difference";
    paneD.querySelector(".sf-label").textContent = `|${nameA} − ${nameB}| × ${model.get("gain")}`;
    note.hidden = Boolean(difference.img.src);
    if (mode === "difference" && !note.hidden && !waiting)
      waiting = setTimeout(() => { note.textContent = "The difference needs the kernel: run the cell again."; }, PATIENCE);
    // Side by side needs a stage of twice the shape. A tall picture must not outgrow the window: a fixed height, since
    // in Colab's frames vh is the height of the frame, which follows its content.
    const aspect = (mode === "side" ? 2 : 1) * (width / height);
    stage.style.aspectRatio = aspect;
    stage.style.maxWidth = `min(${Math.max(mode === "side" ? 2 * width : width, 560)}px, ${Math.round(TALLEST * aspect)}px)`;
    drawLens();
  }
  function drawLens() {
    const reach = 0.5 / lens.zoom; // half of what the stage shows: the lens may not leave the picture
    lens.x = clamp(lens.x, reach, 1 - reach);
    lens.y = clamp(lens.y, reach, 1 - reach);
    for (const { img } of [a, b, difference]) {
      img.style.width = img.style.height = `${100 * lens.zoom}%`;
      img.style.left = `${100 * (0.5 - lens.x * lens.zoom)}%`;
      img.style.top = `${100 * (0.5 - lens.y * lens.zoom)}%`;
    }
    root.dataset.zoomed = lens.zoom > 1.001;
    const scale = (paneBox().width * lens.zoom) / width;
    root.dataset.pixels = scale * (window.devicePixelRatio || 1) >= PIXELS_FROM;
    root.dataset.zoom = lens.zoom.toFixed(3);
    percent.textContent = `${Math.round(100 * scale)} %`;
  }
  /** The rectangle of one picture on the screen; side by side, of the one under clientX. */
  function paneBox(clientX = -Infinity) {
    const box = stage.getBoundingClientRect();
    if (model.get("mode") !== "side") return { left: box.left, top: box.top, width: box.width, height: box.height };
    const half = box.width / 2;
    return { left: box.left + (clientX > box.left + half ? half : 0), top: box.top, width: half, height: box.height };
  }

  // ------------------------------------------------------------------ what the reader does
  function setMode(mode) {
    model.set("mode", mode);
    model.save_changes();
  }
  function setWipe(value, save = true) {
    model.set("wipe", clamp(value, 0, 100));
    if (save) model.save_changes();
  }
  /** Zooms so that the point (px, py) of the stage, 0..1, keeps its place. */
  function zoomTo(zoom, px = 0.5, py = 0.5) {
    const furthest = Math.max(8, (32 * width) / Math.max(paneBox().width, 1));
    const next = clamp(zoom, 1, furthest);
    lens.x += (px - 0.5) * (1 / lens.zoom - 1 / next);
    lens.y += (py - 0.5) * (1 / lens.zoom - 1 / next);
    lens.zoom = next;
    drawLens();
  }
  const place = (event) => {
    const box = paneBox(event.clientX);
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };

  // A finger or the mouse moves the wipe; zoomed in, it moves the picture, and the wipe by its handle; two fingers zoom.
  const pointers = new Map();
  let wiping = false;
  let pinch = 0;
  const spread = () => {
    const [p, q] = [...pointers.values()];
    return Math.hypot(p.clientX - q.clientX, p.clientY - q.clientY);
  };
  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    stage.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, event);
    if (pointers.size === 2) {
      wiping = false;
      pinch = spread();
      return;
    }
    wiping = model.get("mode") === "wipe" && (handle.contains(event.target) || lens.zoom <= 1.001);
    if (wiping) {
      setWipe(100 * place(event)[0], false);
      handle.focus({ preventScroll: true });
      event.preventDefault();
    }
  });
  stage.addEventListener("pointermove", (event) => {
    const last = pointers.get(event.pointerId);
    if (!last) return;
    pointers.set(event.pointerId, event);
    if (pointers.size === 2) {
      const now = spread();
      zoomTo((lens.zoom * now) / pinch, ...place(event));
      pinch = now;
    } else if (wiping) {
      setWipe(100 * place(event)[0], false);
    } else if (lens.zoom > 1.001) {
      const box = paneBox(event.clientX);
      lens.x -= (event.clientX - last.clientX) / (box.width * lens.zoom);
      lens.y -= (event.clientY - last.clientY) / (box.height * lens.zoom);
      drawLens();
    }
  });
  const release = (event) => {
    if (pointers.delete(event.pointerId) && wiping) model.save_changes();
    wiping = false;
  };
  stage.addEventListener("pointerup", release);
  stage.addEventListener("pointercancel", release);
  stage.addEventListener("dblclick", (event) => {
    if (!handle.contains(event.target)) zoomTo(lens.zoom > 1.001 ? 1 : 3, ...place(event));
  });
  // The bare wheel scrolls the page, as everywhere; with Ctrl or Cmd, which is also what a trackpad's pinch sends, it zooms.
  stage.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    zoomTo(lens.zoom * Math.exp(-clamp(event.deltaY, -60, 60) / 120), ...place(event));
  }, { passive: false });
  stage.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const onHandle = event.target === handle;
    const wipe = model.get("wipe");
    const step = event.shiftKey ? 10 : 1;
    const pan = (dx, dy) => {
      lens.x += (0.1 * dx) / lens.zoom;
      lens.y += (0.1 * dy) / lens.zoom;
      drawLens();
    };
    const keys = onHandle
      ? {
          ArrowLeft: () => setWipe(wipe - step), ArrowRight: () => setWipe(wipe + step),
          ArrowDown: () => setWipe(wipe - step), ArrowUp: () => setWipe(wipe + step),
          PageDown: () => setWipe(wipe - 10), PageUp: () => setWipe(wipe + 10),
          Home: () => setWipe(0), End: () => setWipe(100),
        }
      : { ArrowLeft: () => pan(-1, 0), ArrowRight: () => pan(1, 0), ArrowUp: () => pan(0, -1), ArrowDown: () => pan(0, 1) };
    Object.assign(keys, { "+": () => zoomTo(lens.zoom * 1.5), "=": () => zoomTo(lens.zoom * 1.5),
      "-": () => zoomTo(lens.zoom / 1.5), 0: () => zoomTo(1) });
    if (!keys[event.key]) return;
    keys[event.key]();
    event.preventDefault();
    event.stopPropagation();
  });

  // ------------------------------------------------------------------ life
  const loadDifference = () => {
    difference.load();
    draw();
  };
  for (const name of ["wipe", "mode", "gain"]) model.on(`change:${name}`, draw);
  model.on("change:difference", loadDifference);
  const resized = new ResizeObserver(drawLens);
  resized.observe(stage);
  draw();
  return () => {
    for (const name of ["wipe", "mode", "gain"]) model.off(`change:${name}`, draw);
    model.off("change:difference", loadDifference);
    resized.disconnect();
    clearTimeout(waiting);
    for (const url of urls) URL.revokeObjectURL(url);
  };
}

/** The figures in words: nodes, with the numbers in bold. */
function describe({ mean, maximum, psnr }) {
  if (maximum === 0) return [element("b", { textContent: "identical" })];
  const bold = (text) => element("b", { textContent: text });
  return ["mean difference ", bold(mean < 0.1 ? mean.toPrecision(2) : mean.toFixed(1)), ", largest ", bold(String(maximum)),
    " of 255, PSNR ", bold(`${psnr.toFixed(1)} dB`)];
}

export default { render };
