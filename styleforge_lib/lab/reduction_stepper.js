// reduction_stepper(): Python has played the rounds of both orders; here they are drawn as far as the slider has come,
// the newest round with the lines along which its numbers travelled.

const CELL = 24; // drawing units of a number, GAP between warps, ROW from one round to the next
const GAP = 8;
const ROW = 44;

function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function render({ model, el }) {
  const { values, lanes, orders } = model.get("drawing");
  const names = Object.keys(orders);
  const count = orders[names[0]].length;
  const width = values.length * CELL + (values.length / lanes) * GAP;
  const x = (place) => place * CELL + Math.floor(place / lanes) * GAP + 2;
  const picture = svg("svg", { viewBox: `0 0 ${width} ${count * ROW + 30}`, role: "img" });
  const says = element("div", { className: "sf-says sf-figures", role: "status" });
  const set = (name, value) => {
    model.set(name, value);
    model.save_changes();
  };
  const buttons = names.map((name) => element("button", { type: "button", textContent: name, onclick: () => set("order", name) }));
  const steps = slider("round", { min: 0, max: count, value: model.get("step"), text: (v) => `${v} of ${count}`, onchange: (v) => set("step", v) });
  const entry = (kind, text) => element("span", {}, element("i", { className: kind }), text);
  const legend = element("div", { className: "sf-legend" }, entry("adds", "its thread adds"),
    entry("busy", "its warp is busy, the thread is not"), entry("foreign", "read by another warp in the next round"));

  function drawRow(row, round, next, newest) {
    const y = row * ROW + 4;
    const adds = new Set(round ? round.additions.map(([to]) => to) : []);
    const foreign = new Set(next ? next.foreign : []);
    if (round && newest)
      for (const [to, from] of round.additions)
        picture.append(svg("line", { class: round.foreign.includes(from) ? "foreign" : "path",
          x1: x(from) + CELL / 2, y1: y - ROW + 23, x2: x(to) + CELL / 2, y2: y - 1 }));
    (round ? round.values : values).forEach((value, place) => {
      const kind = adds.has(place) ? "adds" : round && round.warps.includes(Math.floor(place / lanes)) ? "busy" : "rests";
      picture.append(svg("g", { class: `cell ${kind}${foreign.has(place) ? " foreign" : ""}` },
        svg("rect", { x: x(place) + 1, y, width: CELL - 2, height: 22, rx: 3 }),
        svg("text", { x: x(place) + CELL / 2, y: y + 15, "text-anchor": "middle" }, String(value))));
    });
  }
  function draw() {
    const order = model.get("order");
    const step = clamp(model.get("step"), 0, count);
    const played = orders[order];
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(names[i] === order)));
    steps.set(step);
    picture.replaceChildren();
    for (let row = 0; row <= step; row++) drawRow(row, played[row - 1], played[row], row === step);
    const words = step ? `Round ${step}: ${played[step - 1].words}` : "Each thread has laid its own number into shared memory.";
    picture.setAttribute("aria-label", `${order}. ${words}`);
    says.textContent = words + (step === count ? ` The sum is ${played[count - 1].values[0]}.` : "");
  }
  el.append(element("div", { className: "sf sf-reduction" },
    element("div", { className: "sf-bar" }, element("div", { className: "sf-group", role: "group", "aria-label": "Order" }, ...buttons), steps.node),
    picture, legend, says));
  for (const name of ["order", "step"]) model.on(`change:${name}`, draw);
  draw();
  return () => {
    for (const name of ["order", "step"]) model.off(`change:${name}`, draw);
  };
}

export default { render };
