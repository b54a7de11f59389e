// Helpers shared by the course's widgets. Python joins this file with a widget's own: there is no bundler.

/** An element with attributes, properties (className, textContent, ...), listeners (onclick, ...) and children. */
function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** JupyterLab takes arrows and letters for its own shortcuts unless an element says that it uses them itself. */
function ownKeys(node) {
  node.setAttribute("data-lm-suppress-shortcuts", "true");
  return node;
}

/** A labelled range input; `text(value)` words the value for the eye and for a screen reader. */
function slider(label, { min, max, step = 1, value, text = String, onchange }) {
  const shown = element("output");
  const input = ownKeys(element("input", { type: "range", min, max, step, "aria-label": label }));
  input.value = value;
  const update = () => {
    shown.textContent = text(Number(input.value));
    input.setAttribute("aria-valuetext", shown.textContent);
  };
  input.addEventListener("input", () => {
    update();
    onchange(Number(input.value));
  });
  update();
  const node = element("label", { className: "sf-field" }, label, input, shown);
  return { node, input, set: (v) => { input.value = v; update(); } };
}

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
