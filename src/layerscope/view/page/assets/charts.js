// Charts: drawn when they come into view, in the page's own colours, by the runtime that the page carries.

const drawn = new Map();

// The runtime is started with the first chart: that takes longer than the rest of the page, and most come for the grid.
// It runs as a script of its own, which the page's policy knows by its hash.
let started;

function runtime() {
  started ??= new Promise((ready) => {
    addEventListener("charts-runtime", () => ready(window.vegaEmbed), { once: true }); // its own last line says so
    document.body.append(make("script", { type: "module", text: byId("runtime").textContent }));
  });
  return started;
}

async function draw(figure, dark = isDark()) {
  const plot = figure.querySelector(".plot");
  const embed = await runtime();
  const spec = JSON.parse(await inflateText(figure.dataset.spec));
  drawn.get(figure)?.finalize();
  const config = JSON.parse(byId(dark ? "config-dark" : "config-light").textContent);
  config.background = css(surface(dark));
  // The plot as a whole has a role and words of its own, which Vega would replace on what it draws in.
  const inner = make("div", { "aria-hidden": "true" });
  plot.replaceChildren(inner);
  const result = await embed(inner, spec, {
    config,
    mode: "vega-lite",
    ast: true,
    actions: false,
    renderer: "svg",
    defaultStyle: false,
    tooltip: { disableDefaultStyle: true },
  });
  drawn.set(figure, result);
  figure.classList.add("drawn");
}

const watcher = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting || drawn.has(entry.target)) continue;
      drawn.set(entry.target, null);
      inTurn(entry.target, () => drawn.get(entry.target) ?? draw(entry.target));
    }
  },
  { rootMargin: "400px" },
);
let queue = Promise.resolve();

// One thing at a time: a chart that is drawn anew while it is being saved would take the drawing away from the saver.
function inTurn(figure, work) {
  queue = queue.then(work).catch((error) => failed(figure, error));
}

function failed(figure, error) {
  figure.querySelector(".plot").textContent = `This chart could not be drawn: ${error.message}`;
  console.error(error);
}

async function saveChart(figure, kind) {
  const name = `${figure.dataset.name}.${kind}`;
  if (kind === "csv") {
    download(name, await inflateText(figure.dataset.table), "text/csv;charset=utf-8");
    return;
  }
  if (!drawn.get(figure)) await draw(figure);
  const { view } = drawn.get(figure);
  if (kind === "svg") download(name, await view.toSVG(), "image/svg+xml");
  else {
    const canvas = await view.toCanvas(2);
    download(name, await new Promise((done) => canvas.toBlob(done, "image/png")));
  }
}

// What is not in view is drawn when nothing else is to be done, so that a printed page has it.
const IDLE_AFTER_MS = 2500;

// Not every browser says when it is idle.
const whenIdle = window.requestIdleCallback ?? ((work) => setTimeout(work, 200));

function drawWhenIdle() {
  const next = all("figure.chart").find((figure) => !drawn.has(figure) && figure.offsetParent);
  if (!next) return;
  drawn.set(next, null);
  inTurn(next, () => drawn.get(next) ?? draw(next));
  queue.then(() => whenIdle(drawWhenIdle));
}

// Every chart that is shown, in light colours, for paper is white; afterwards in those of the screen again.
async function printAll() {
  const shown = all("figure.chart").filter((figure) => figure.offsetParent);
  const dark = isDark();
  for (const figure of shown) inTurn(figure, () => (drawn.get(figure) && !dark ? null : draw(figure, false)));
  await queue;
  print();
  if (dark) for (const figure of shown) inTurn(figure, () => draw(figure));
}

function bindPrinting() {
  addEventListener("load", () => setTimeout(() => whenIdle(drawWhenIdle), IDLE_AFTER_MS));
  // The browser does not wait for a page that is to be printed, so the page is made ready before it is asked to.
  document.addEventListener("keydown", async (event) => {
    if (event.key !== "p" || !(event.ctrlKey || event.metaKey) || event.shiftKey || event.altKey) return;
    event.preventDefault();
    await printAll();
  });
  byId("print").addEventListener("click", printAll);
}

function bindCharts() {
  for (const figure of all("figure.chart")) {
    watcher.observe(figure);
    for (const button of all("button[data-save]", figure)) {
      button.addEventListener("click", () => inTurn(figure, () => saveChart(figure, button.dataset.save)));
    }
  }
}

function redrawCharts() {
  for (const [figure, result] of drawn) if (result) inTurn(figure, () => draw(figure));
}
