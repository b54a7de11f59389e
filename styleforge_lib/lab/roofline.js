// roofline(points): Python has laid the drawing out (lines, ticks, points, labels, in pixels); here it is drawn, points
// answer to the mouse and to the keyboard, and sliders place a kernel that does not exist yet.

function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
const ANCHORS = { left: "start", right: "end" };

/** 4.24e12 -> "4.24 T" + unit: three figures and an SI prefix. */
function quantity(value, unit) {
  const [factor, prefix] = [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([f]) => value >= 0.9995 * f) ?? [1, ""];
  const scaled = value / factor;
  return `${scaled >= 99.95 ? scaled.toFixed(0) : scaled.toPrecision(3)} ${prefix}${unit}`;
}
function duration(seconds) {
  const [factor, unit] = [[1, "s"], [1e-3, "ms"], [1e-6, "µs"]].find(([f]) => seconds >= f) ?? [1e-9, "ns"];
  return `${(seconds / factor).toPrecision(3)} ${unit}`;
}

function render({ model, el }) {
  const drawing = model.get("drawing");
  const machine = model.get("machine");
  const [width, height] = drawing.size;
  const [left, right, top, bottom] = drawing.margins;
  const says = element("div", { className: "sf-says sf-figures", role: "status" });

  // ------------------------------------------------------------------ the drawing
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `Roofline of ${machine.name}` });
  for (const { axis, at, text } of drawing.ticks) {
    const vertical = axis === "x";
    const ends = vertical ? { x1: at, x2: at, y1: top, y2: height - bottom } : { x1: left, x2: width - right, y1: at, y2: at };
    const place = vertical ? { x: at, y: height - bottom + 17, "text-anchor": "middle" } : { x: left - 8, y: at + 4, "text-anchor": "end" };
    picture.append(svg("line", { class: "grid", ...ends }), svg("text", { class: "tick", ...place }, text));
  }
  picture.append(svg("text", { class: "title", x: (left + width - right) / 2, y: height - 8, "text-anchor": "middle" }, "FLOP per byte moved"));
  picture.append(svg("text", { class: "tick", x: left + 10, y: top + 20 }, machine.where));
  for (const { x, y, text, text_at: [tx, ty], angle, anchor, colour } of drawing.lines)
    picture.append(svg("g", { class: `c${colour}` },
      svg("path", { class: "roof", d: `M${x[0]} ${y[0]}L${x[1]} ${y[1]}` }),
      svg("text", { class: "name", "text-anchor": ANCHORS[anchor], transform: `translate(${tx} ${ty}) rotate(${angle})` }, text)));
  const yours = svg("g", { class: "yours" });
  for (const { label, at: [x, y], text_at: [tx, ty], anchor, colour, words } of drawing.points) {
    const point = svg("g", { class: `point c${colour}`, tabindex: 0, role: "img", "aria-label": words },
      svg("circle", { class: "reach", cx: x, cy: y, r: 14 }), svg("circle", { class: "dot", cx: x, cy: y, r: 5.5 }),
      svg("text", { class: "label", x: tx, y: ty + 4, "text-anchor": ANCHORS[anchor] }, label));
    for (const event of ["pointerenter", "focus"]) point.addEventListener(event, () => { says.textContent = `${words}.`; });
    for (const event of ["pointerleave", "blur"]) point.addEventListener(event, draw);
    picture.append(point);
  }
  picture.append(yours);

  // ------------------------------------------------------------------ your own kernel
  const set = (name, value) => {
    model.set(name, value);
    model.save_changes();
  };
  const power = (name, label, min, max, text = String) => slider(label, {
    min, max, value: Math.log2(model.get(name)), text: (v) => text(2 ** v), onchange: (v) => set(name, 2 ** v),
  });
  const sliders = {
    flops: power("flops", "FLOP an element", -1, 14),
    bytes: power("bytes", "bytes an element", 0, 8),
    millions: power("millions", "million elements", 0, 10),
  };
  const choice = ownKeys(element("select", { "aria-label": "Precision", onchange: () => set("dtype", choice.value) },
    ...Object.keys(machine.flops_per_s).map((dtype) => element("option", { value: dtype, textContent: dtype }))));
  const precision = element("label", { className: "sf-field" }, choice);

  function draw() {
    const [flops, bytes, millions, dtype] = ["flops", "bytes", "millions", "dtype"].map((name) => model.get(name));
    for (const [name, { set: show }] of Object.entries(sliders)) show(Math.log2(model.get(name)));
    choice.value = dtype;
    const peak = machine.flops_per_s[dtype];
    const intensity = flops / bytes;
    const roof = Math.min(peak, intensity * machine.bytes_per_s);
    const memory = intensity * machine.bytes_per_s < peak;
    const along = (v, [low, high], first, last) => first + (last - first) * clamp(Math.log(v / low) / Math.log(high / low), 0, 1);
    const x = along(intensity, drawing.x, left, width - right);
    const y = along(roof, drawing.y, height - bottom, top);
    yours.replaceChildren(svg("line", { x1: x, x2: x, y1: y, y2: height - bottom }),
      svg("path", { d: `M${x} ${y - 8}l8 8l-8 8l-8 -8z` }));
    const bold = (text) => element("b", { textContent: text });
    says.replaceChildren("Your kernel: ", bold(`${Number(intensity.toPrecision(3))} FLOP/byte`), ", limited by ",
      bold(memory ? "memory" : "arithmetic"), ": at most ", bold(quantity(roof, "FLOP/s")), " of ", quantity(peak, "FLOP/s"),
      ", so at least ", bold(duration((flops * millions * 1e6) / roof)), " for ", `${millions} million elements.`);
  }

  el.append(element("div", { className: "sf sf-roofline" }, picture, says,
    element("div", { className: "sf-bar" }, ...Object.values(sliders).map((s) => s.node), precision)));
  const names = [...Object.keys(sliders), "dtype"];
  for (const name of names) model.on(`change:${name}`, draw);
  draw();
  return () => {
    for (const name of names) model.off(`change:${name}`, draw);
  };
}

export default { render };
