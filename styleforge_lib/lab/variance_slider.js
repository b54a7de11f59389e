// variance_slider(): Python has written out the bits for every mean and deviation; here the chosen ones are drawn.

const CELL = 22; // drawing units of a bit
const NAMES = [["E[x²]", "squares"], ["E[x]²", "square"], ["variance", "variance"]];

function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function render({ model, el }) {
  const { means, deviations, kept, table } = model.get("drawing");
  const columns = table[0][0].squares.length;
  const left = 76;
  const picture = svg("svg", { viewBox: `0 0 ${left + columns * CELL + 2} 122`, role: "img" });
  const says = element("div", { className: "sf-says sf-figures", role: "status" });
  const choice = (name, values) => slider(name, { min: 0, max: values.length - 1, value: model.get(name),
    text: (i) => String(values[i]), onchange: (i) => {
      model.set(name, i);
      model.save_changes();
    } });
  const sliders = { mean: choice("mean", means), deviation: choice("deviation", deviations) };

  function draw() {
    const found = table[model.get("mean")][model.get("deviation")];
    for (const [name, one] of Object.entries(sliders)) one.set(model.get(name));
    const edge = left + kept * CELL;
    picture.replaceChildren(
      svg("text", { class: "edge", x: edge - 6, y: 14, "text-anchor": "end" }, `${kept} bits are kept`),
      svg("text", { class: "edge", x: edge + 6, y: 14 }, "rounded away"));
    NAMES.forEach(([name, key], row) => {
      const y = 22 + row * 31 + (row === 2 ? 6 : 0);
      picture.append(svg("text", { class: "name", x: left - 10, y: y + 18, "text-anchor": "end" }, name));
      [...found[key]].forEach((bit, column) => {
        const kind = row === 2 && bit === "1" ? (column < kept ? "found" : "lost") : column < kept ? "kept" : "beyond";
        picture.append(svg("g", { class: `bit ${kind} ${bit === "1" ? "one" : "zero"}` },
          svg("rect", { x: left + column * CELL + 1, y, width: CELL - 2, height: 26, rx: 3 }),
          svg("text", { x: left + (column + 0.5) * CELL, y: y + 18, "text-anchor": "middle" }, bit)));
      });
    });
    picture.append(svg("line", { class: "edge", x1: edge, x2: edge, y1: 4, y2: 120 }));
    says.textContent = found.words;
    picture.setAttribute("aria-label", found.words);
  }
  el.append(element("div", { className: "sf sf-variance" }, picture, says,
    element("div", { className: "sf-bar" }, sliders.mean.node, sliders.deviation.node)));
  for (const name of Object.keys(sliders)) model.on(`change:${name}`, draw);
  draw();
  return () => {
    for (const name of Object.keys(sliders)) model.off(`change:${name}`, draw);
  };
}

export default { render };
