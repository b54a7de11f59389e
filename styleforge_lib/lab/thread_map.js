// thread_map(grid, block, shape): the picture's cells on the left, one block of threads on the right; what the pointer or
// the arrow keys choose in one is marked in the other.

const PICTURE = 460; // CSS pixels of the larger side of the left pane
const BLOCK = 250; // and of the right one
const WARP = 32;

/** The launch's geometry: the same rules as in Python's `cells`. */
function geometry(grid, block, [height, width]) {
  const flat = block.length === 1;
  const ceil = (a, b) => Math.floor((a + b - 1) / b);
  const g = grid ?? (flat ? [ceil(height * width, block[0])] : [ceil(width, block[0]), ceil(height, block[1])]);
  const threads = block.reduce((a, b) => a * b);
  const launched = g.reduce((a, b) => a * b) * threads;
  const columns = flat ? width : Math.max(width, g[0] * block[0]);
  const rows = flat ? Math.max(height, ceil(launched, width)) : Math.max(height, g[1] * block[1]);
  /** A cell's linear block and thread (-1: none), and inside: 1 a pixel, 0 a thread beyond the picture, -1 neither. */
  const at = (row, column) => {
    if (row < 0 || column < 0 || row >= rows || column >= columns) return null;
    let owner, thread, exists, pixel;
    if (flat) {
      const index = row * width + column;
      [owner, thread] = [Math.floor(index / block[0]), index % block[0]];
      exists = index < launched;
      pixel = index < height * width;
    } else {
      owner = Math.floor(row / block[1]) * g[0] + Math.floor(column / block[0]);
      thread = (row % block[1]) * block[0] + (column % block[0]);
      exists = row < g[1] * block[1] && column < g[0] * block[0];
      pixel = row < height && column < width;
    }
    return { row, column, owner: exists ? owner : -1, thread: exists ? thread : -1, inside: pixel ? 1 : exists ? 0 : -1 };
  };
  /** The cell of a thread. */
  const of = (owner, thread) => {
    if (flat) {
      const index = owner * block[0] + thread;
      return at(Math.floor(index / width), index % width);
    }
    return at(Math.floor(owner / g[0]) * block[1] + Math.floor(thread / block[0]), (owner % g[0]) * block[0] + (thread % block[0]));
  };
  const odd = (owner) => (flat ? owner % 2 : ((owner % g[0]) + Math.floor(owner / g[0])) % 2);
  return { flat, grid: g, block, height, width, rows, columns, threads, launched, at, of, odd };
}

function render({ model, el }) {
  const [largest, maxThreads] = model.get("limits");
  let map = null;
  let chosen = null; // a cell

  // ------------------------------------------------------------------ elements
  const canvas = (label) => ownKeys(element("canvas", { tabIndex: 0, role: "img", "aria-label": label }));
  const picture = canvas("Picture: arrow keys choose a pixel");
  const threads = canvas("Block: arrow keys choose a thread");
  const captionA = element("figcaption");
  const captionB = element("figcaption");
  const legend = element("div", { className: "sf-legend" });
  const says = element("div", { className: "sf-says sf-figures", role: "status" });
  const size = (label, get, change, max) => slider(label, { min: 1, max, value: get(), onchange: (v) => {
    change(v);
    model.save_changes();
  } });
  const replaced = (list, i, v) => list.map((old, k) => (k === i ? v : old));
  const blockSlider = (i) => size(`blockDim.${"xy"[i]}`, () => model.get("block")[i], (v) => {
    // A block has at most 1024 threads: the other side gives way.
    let block = replaced(model.get("block"), i, v);
    if (block.length === 2 && block[0] * block[1] > maxThreads) block = replaced(block, 1 - i, Math.floor(maxThreads / v));
    model.set("block", block);
  }, model.get("block").length === 1 ? 256 : 64);
  const sliders = [
    ...model.get("block").map((_, i) => blockSlider(i)),
    size("width", () => model.get("shape")[1], (v) => model.set("shape", [model.get("shape")[0], v]), largest),
    size("height", () => model.get("shape")[0], (v) => model.set("shape", [v, model.get("shape")[1]]), largest),
  ];
  const root = element("div", { className: "sf sf-threads" },
    element("div", { className: "sf-panes" }, element("figure", {}, captionA, picture), element("figure", {}, captionB, threads)),
    legend, says, element("div", { className: "sf-bar" }, ...sliders.map((s) => s.node)));
  el.append(root);

  // ------------------------------------------------------------------ drawing
  const colour = (name) => getComputedStyle(root).getPropertyValue(`--sf-${name}`).trim();
  function prepare(node, columns, rows, most) {
    // Cells of a whole number of device pixels: crisp edges at every density.
    const density = window.devicePixelRatio || 1;
    const room = Math.min(most, root.clientWidth || most) * density;
    const cell = Math.max(1, Math.floor(Math.min(room / columns, (most * density) / rows, 34 * density)));
    node.width = cell * columns + 2;
    node.height = cell * rows + 2;
    node.style.width = `${node.width / density}px`;
    node.cell = cell;
    const context = node.getContext("2d");
    context.translate(1, 1);
    return { context, cell, gap: cell >= 6 ? 1 : 0, density };
  }
  function mark(context, cell, column, row, density) {
    context.lineWidth = 2 * density;
    context.strokeStyle = colour("text");
    context.strokeRect(column * cell, row * cell, cell, cell);
  }
  function drawPicture() {
    const { context, cell, gap, density } = prepare(picture, map.columns, map.rows, PICTURE);
    const fills = [colour("even"), colour("odd"), colour("guard"), colour("missed")];
    for (let row = 0; row < map.rows; row++)
      for (let column = 0; column < map.columns; column++) {
        const { owner, inside } = map.at(row, column);
        if (owner < 0 && inside < 1) continue;
        context.fillStyle = owner < 0 ? fills[3] : inside === 1 ? fills[map.odd(owner)] : fills[2];
        context.globalAlpha = chosen && owner !== chosen.owner ? 0.6 : 1;
        context.fillRect(column * cell, row * cell, cell - gap, cell - gap);
      }
    context.globalAlpha = 1;
    context.lineWidth = 1.5 * density;
    context.strokeStyle = colour("text");
    context.strokeRect(0, 0, map.width * cell, map.height * cell); // the picture's edge
    if (chosen) mark(context, cell, chosen.column, chosen.row, density);
  }
  function drawThreads() {
    const columns = map.flat ? Math.min(WARP, map.block[0]) : map.block[0]; // one warp a row, where the block has one dimension
    const { context, cell, gap, density } = prepare(threads, columns, Math.ceil(map.threads / columns), BLOCK);
    threads.columns = columns;
    const owner = chosen && chosen.owner >= 0 ? chosen.owner : 0;
    const [even, guard] = [colour("odd"), colour("guard")];
    for (let thread = 0; thread < map.threads; thread++) {
      const { inside } = map.of(owner, thread) ?? { inside: 0 };
      context.fillStyle = inside === 1 ? even : guard;
      context.globalAlpha = Math.floor(thread / WARP) % 2 ? 0.6 : 1; // warps in turn light and full
      context.fillRect((thread % columns) * cell, Math.floor(thread / columns) * cell, cell - gap, cell - gap);
    }
    context.globalAlpha = 1;
    if (chosen && chosen.thread >= 0) mark(context, cell, chosen.thread % columns, Math.floor(chosen.thread / columns), density);
  }
  const tuple = (list) => `(${list.join(", ")}${list.length === 1 ? "," : ""})`;
  const pair = (linear, [x]) => (map.flat ? `${linear}` : `(${linear % x}, ${Math.floor(linear / x)})`);
  function describe() {
    const bold = (text) => element("b", { textContent: text });
    const line = (...nodes) => element("div", {}, ...nodes);
    if (!chosen) return [line("Point at a pixel, or at a thread; or choose with Tab and the arrow keys.")];
    const { row, column, owner, thread, inside } = chosen;
    const index = row * map.width + column;
    const place = inside === 1 ? ["pixel ", bold(`row ${row}, column ${column}`), `, linear index ${index}`]
      : [map.flat ? `index ${index}` : `row ${row}, column ${column}`, ", beyond the picture"];
    if (owner < 0) return [line(...place, ": ", bold("no thread handles it"), ". The grid is too small.")];
    const where = map.flat
      ? `i = ${owner} * ${map.block[0]} + ${thread} = ${index};  guard: i < ${map.height * map.width} is ${inside === 1}`
      : `x = ${owner % map.grid[0]} * ${map.block[0]} + ${thread % map.block[0]} = ${column};  ` +
        `y = ${Math.floor(owner / map.grid[0])} * ${map.block[1]} + ${Math.floor(thread / map.block[0])} = ${row};  ` +
        `guard: x < ${map.width} && y < ${map.height} is ${inside === 1}`;
    return [
      line("block ", bold(pair(owner, map.grid)), ", thread ", bold(pair(thread, map.block)),
        `, number ${thread} in its block: warp ${Math.floor(thread / WARP)}, lane ${thread % WARP}`),
      line("→ ", ...place),
      line(element("code", { textContent: where })),
    ];
  }
  function drawChoice() {
    drawPicture();
    drawThreads();
    const shown = chosen && chosen.owner >= 0 ? chosen.owner : 0;
    captionB.textContent = `Block ${pair(shown, map.grid)}: ${map.threads} threads, warps in two shades`;
    says.replaceChildren(...describe());
    Object.assign(root.dataset, chosen ? { owner: chosen.owner, thread: chosen.thread, row: chosen.row, column: chosen.column, inside: chosen.inside } : {});
  }
  function draw() {
    map = geometry(model.get("grid"), model.get("block"), model.get("shape"));
    chosen = chosen && map.at(chosen.row, chosen.column);
    const values = [...map.block, map.width, map.height];
    sliders.forEach((s, i) => s.set(values[i]));
    let busy = 0;
    let missed = 0;
    for (let row = 0; row < map.height; row++)
      for (let column = 0; column < map.width; column++) map.at(row, column).owner < 0 ? missed++ : busy++;
    const idle = map.launched - busy;
    captionA.textContent = `Picture ${map.height} x ${map.width}, grid ${tuple(map.grid)}, block ${tuple(map.block)}`;
    const entry = (name, text) => {
      const swatch = element("i");
      swatch.style.background = `var(--sf-${name})`;
      return element("span", {}, swatch, text);
    };
    legend.replaceChildren(entry("odd", `${busy} threads with a pixel (${((100 * busy) / map.launched).toFixed(0)} % of ${map.launched})`),
      ...(idle ? [entry("guard", `${idle} sent home by the guard`)] : []), ...(missed ? [entry("missed", `${missed} pixels without a thread`)] : []));
    drawChoice();
  }

  // ------------------------------------------------------------------ what the reader does
  const choose = (cell) => {
    if (!cell || (cell.owner < 0 && cell.inside < 1)) return;
    chosen = cell;
    drawChoice();
  };
  const cellAt = (node, event) => {
    const box = node.getBoundingClientRect();
    const scale = node.width / box.width / node.cell;
    return [Math.floor((event.clientY - box.top) * scale), Math.floor((event.clientX - box.left) * scale)];
  };
  const chooseThread = (thread) => {
    if (thread >= 0 && thread < map.threads) choose(map.of(chosen && chosen.owner >= 0 ? chosen.owner : 0, thread));
  };
  for (const type of ["pointermove", "pointerdown"]) {
    picture.addEventListener(type, (event) => choose(map.at(...cellAt(picture, event))));
    threads.addEventListener(type, (event) => {
      const [row, column] = cellAt(threads, event);
      if (column >= 0 && column < threads.columns) chooseThread(row * threads.columns + column);
    });
  }
  const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  const onKeys = (node, move) => node.addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
    chosen ? move(...step) : choose(map.at(0, 0));
    event.preventDefault();
    event.stopPropagation();
  });
  onKeys(picture, (dy, dx) => choose(map.at(chosen.row + dy, chosen.column + dx)));
  onKeys(threads, (dy, dx) => chooseThread(Math.max(chosen.thread, 0) + dy * threads.columns + dx));

  // ------------------------------------------------------------------ life
  const names = ["grid", "block", "shape"];
  for (const name of names) model.on(`change:${name}`, draw);
  const resized = new ResizeObserver(() => map && drawChoice());
  resized.observe(root);
  // A theme changes the colours that were painted.
  const repaint = new MutationObserver(() => drawChoice());
  for (const node of [document.body, document.documentElement])
    repaint.observe(node, { attributes: true, attributeFilter: ["data-jp-theme-light", "theme", "class", "data-sf-theme"] });
  draw();
  return () => {
    for (const name of names) model.off(`change:${name}`, draw);
    resized.disconnect();
    repaint.disconnect();
  };
}

export { geometry };
export default { render };
