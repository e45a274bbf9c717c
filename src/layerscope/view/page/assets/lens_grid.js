// The lens grid: what is shown of which prompt, in which colours, and what is found in it.

const EVERY = "every";
const state = {
  run: PAGE.runs[0],
  fact: null,
  variant: null,
  lens: null,
  against: "",
  side: false,
  metric: "entropy",
  query: "",
  tracked: [],
  pins: [],
};
const hosts = [byId("pane-a"), byId("pane-b")];
const grids = hosts.map((host) => new Grid(host, { look, leave, pin, scroll: scrolled }));
let shown = [];
let turn = 0;
let revealed = null;

const factOf = (prompt) => `${prompt.prompt_id}/${prompt.fact_index ?? ""}`;
const promptName = (prompt) => (state.run.prompts.some((one) => one.fact === prompt.fact && one !== prompt) ? `${prompt.fact} (${prompt.variant})` : prompt.fact);
const promptOf = (run, fact, variant) => {
  const own = run.prompts.filter((prompt) => factOf(prompt) === fact);
  return own.find((prompt) => prompt.variant === variant) ?? own[0] ?? null;
};

const prompt = (run) => (state.fact === EVERY ? null : promptOf(run, state.fact, state.variant));

function sourceOf(run, lens) {
  return { run, lens, prompt: prompt(run), every: state.fact === EVERY, variant: state.variant };
}

// Show what the state says; `step` makes it one that the browser's Back undoes. False where something else is shown by then.
async function refresh(step = false) {
  const mine = ++turn;
  const started = performance.now();
  const own = sourceOf(state.run, state.lens);
  const other = rival();
  for (const source of [own, other]) if (source) source.columns = await columnsOf(source);
  if (mine !== turn) return false;
  floating.hide();
  for (const source of [own, other]) if (source && !source.every) source.columns = placesOf(source.columns);
  const why = other ? unlike(own, other) : "";
  const difference = Boolean(other) && !state.side && !why;
  const left = difference && own.prompt !== other.prompt && own.run === other.run ? pairedFromTheEnd(own, other) : "";
  shown = other ? [own, other] : [own];
  shown.difference = difference;
  controls(own, other, why || left);
  const panes = difference || !other ? [own] : [own, other];
  byId("panes").classList.toggle("two", panes.length > 1);
  hosts[1].hidden = panes.length < 2;
  panes.forEach((source, i) => {
    const title = difference ? `${nameOf(own)} minus ${nameOf(other)}` : nameOf(source);
    grids[i].source = source;
    grids[i].show(source.columns, source.run.n_layers + 1, title, difference ? other.columns : null);
    grids[i].title.hidden = !other;
  });
  repaint();
  drawRanks();
  reveal(panes);
  byId("grid-empty").hidden = own.columns.length > 0;
  link.write(step);
  document.documentElement.dataset.gridMs = (performance.now() - started).toFixed(1);
  return true;
}

// Another prompt or lens begins where its answer first comes on top; the same one stays where it was scrolled to.
function reveal(panes) {
  const key = panes.map(({ run, lens, prompt }) => [run.label, lens, prompt && factOf(prompt) + prompt.variant].join()).join();
  if (key === revealed) return;
  revealed = key;
  panes.forEach((_, i) => {
    const layer = grids[i].marks.rank_1 ?? grids[i].marks.strong;
    if (layer === undefined) grids[i].scroll.scrollTop = 0;
    else grids[i].reveal(layer);
  });
}

// What colour stands for; a run with one position shows places of its list, and the probability of each token.
const metricOf = (columns) => (columns[0]?.entry === undefined ? METRICS[state.metric] : SHOWN);

function legend(metric, difference, most) {
  const { run } = state;
  const node = byId("legend");
  node.hidden = metric.probability ? !run.probabilities : !run.ranks;
  const bar = make("span", { class: "ramp", "aria-hidden": "true" });
  bar.style.backgroundImage = gradient(difference ? "diverging" : "viridis");
  const [low, high] = difference ? [`−${most.toPrecision(2)}`, `+${most.toPrecision(2)} ${metric.apartUnit}`] : metric.ends(run);
  const name = difference ? `${metric.label}, difference` : metric.label;
  state.scale = { name: difference ? "diverging" : "viridis", ends: [low, high] };
  node.replaceChildren(make("span", { class: "legend-name", text: name }), make("span", { text: low }), bar, make("span", { text: high }));
}

const STATUS_SIGNS = { model: "●", near: "◐", decoded: "○", withheld: "×" };

// What the probabilities of the layers are: once, and not on every card.
function statusLegend({ run, lens }) {
  const node = byId("status-legend");
  const found = new Set((run.statuses[lens] ?? []).filter(Boolean));
  node.hidden = !run.probabilities || (!run.suppressed && !found.size);
  if (run.suppressed) {
    node.textContent = "Probabilities and entropies: not to be reported, the guidance on this run stands against them.";
    return;
  }
  const told = Object.entries(STATUS_SIGNS).filter(([status]) => found.has(status)).map(([status, sign]) => `${sign} ${PAGE.status_words[status]}`);
  node.textContent = `Probabilities at the last position are: ${told.join(" · ")}`;
}

// What the two bars beside a layer's number are, and what they amount to.
function carriedLegend({ run }) {
  const node = byId("carried-legend");
  node.hidden = !run.carried;
  if (!run.carried) return;
  const which = run.carried.subject.length ? "left: at the subject's last token; right: at the prompt's last" : "at the prompt's last token";
  const words = run.carried.words;
  node.replaceChildren(swatch(1), ` Patches (${which}), the fuller the larger the effect: ${words}.`);
}

// Below 98 of 100 differences the scale's end, so that a few large ones do not pale all others.
function widest(metric, own, other) {
  const sizes = [];
  own.columns.forEach((column, c) => {
    for (let layer = 0; layer <= own.run.n_layers; layer++) {
      const apart = Math.abs(metric.apart(column.value(metric.field, layer), other.columns[c].value(metric.field, layer)));
      if (Number.isFinite(apart)) sizes.push(apart);
    }
  });
  sizes.sort((a, b) => a - b);
  return sizes[Math.floor((sizes.length - 1) * 0.98)] || 1;
}

function repaint() {
  if (!shown.length) return;
  const { difference } = shown;
  const [own, other] = shown;
  const metric = metricOf(own.columns);
  const search = state.query ? searched(state.query) : null;
  const pinned = new Set(state.pins.map((one) => one.key));
  const most = difference ? widest(metric, own, other) : 0;
  legend(metric, difference, most);
  statusLegend(own);
  carriedLegend(own);
  const counts = { cells: 0, total: 0, best: null, listed: 0 };
  for (const grid of grids.slice(0, difference || !other ? 1 : 2)) {
    const painter = { grid, metric, search, pinned, counts, most, other: difference ? other : null, empty: surface() };
    painter.answers = grid.source.columns.map((column) => new Set(column.prompt.answer_tokens));
    grid.table.classList.toggle("difference", Boolean(difference));
    grid.table.classList.toggle("follows", state.tracked.length > 0 && grid.source.run.ranks);
    grid.paint((c, layer) => cellLook(painter, c, layer));
  }
  searchResult(search, counts);
}

// Nodes, colour and classes of a cell.
function cellLook(painter, c, layer) {
  const { grid, metric, search, answers, other, most } = painter;
  const { run, columns } = grid.source;
  const column = columns[c];
  const there = column.state(layer);
  if (!there) return { nodes: [], classes: "absent", colour: null };
  if (there & 2) return { nodes: ["not finite"], classes: "absent", colour: null };
  const token = column.top(layer);
  const value = column.value(metric.field, layer);
  const share = other ? 0.5 + metric.apart(value, other.columns[c].value(metric.field, layer)) / most / 2 : metric.share(value, run);
  let colour = Number.isFinite(share) ? shade(other ? "diverging" : "viridis", share) : null;
  const classes = colour ? [] : ["bare"];
  const nodes = token ? [named(token, answers[c])] : [];
  if (other) {
    const second = other.columns[c].top(layer);
    if (second && second !== token && tokenText(second) !== tokenText(token)) {
      classes.push("two");
      nodes.push(make("span", { class: "second" }, named(second, new Set(other.columns[c].prompt.answer_tokens))));
    }
  }
  const marks = followedMarks(column, layer);
  if (marks.length) classes.push("followed-here");
  nodes.push(...marks);
  if (search) {
    const rank = found(painter, column, layer, c);
    if (rank) {
      classes.push("found");
      nodes.push(make("span", { class: "hit", text: run.ranks ? rank : "✓" }));
    } else if (colour) {
      colour = mix(colour, painter.empty, 0.78);
    }
  }
  const isPinned = painter.pinned.has(keyOf(column, layer));
  if (isPinned) classes.push("pinned");
  return { nodes, classes: classes.join(" "), colour, pinned: isPinned };
}

// The rank of what is searched among the listed tokens of a cell, which is counted; places of one list are one cell.
function found({ search, counts, grid }, column, layer, c) {
  if (!column.entry) counts.total += 1;
  counts.listed = Math.max(counts.listed, column.block.k);
  const rank = column.rankOf(search.tokens, layer);
  if (!rank) return 0;
  counts.cells += 1;
  if (!counts.best || rank < counts.best.rank) counts.best = { rank, layer, c, grid, position: column.position };
  return rank;
}

function searchResult(search, counts) {
  state.best = counts.best;
  const node = byId("search-result");
  if (!search) {
    node.textContent = "";
    return;
  }
  const where = `among the ${counts.listed} listed tokens of each cell`;
  if (!search.tokens.size) node.textContent = "No list of this page names such a token.";
  else if (!counts.cells) node.textContent = `Nowhere ${where}.`;
  else {
    const { rank, layer, position } = counts.best;
    const kind = search.exact ? "" : `${search.tokens.size} tokens contain it · `;
    const best = state.run.ranks ? `best rank ${rank}, ` : "";
    node.textContent = `${kind}${where}: in ${counts.cells} of ${counts.total} cells · ${best}layer ${layer}, position ${position}`;
  }
}

function search(query) {
  state.query = query;
  repaint();
  if (state.best) {
    const { grid, c, layer } = state.best;
    grid.reveal(layer);
    grid.revealColumn(c);
  }
  link.write(false);
}

// A token as a cell shows it, the answer set apart.
function named(token, answers) {
  const node = tokenNode(tokenText(token));
  if (answers.has(token)) node.classList.add("answer");
  return node;
}

// Grids of one shape are scrolled as one.
function scrolled(grid) {
  const twin = grids.find((one) => one !== grid);
  if (shown.length > 1 && !shown.difference && twin.shape === grid.shape) {
    twin.scroll.scrollLeft = grid.scroll.scrollLeft;
    twin.scroll.scrollTop = grid.scroll.scrollTop;
  }
  floating.follow();
}

function look(grid, cell) {
  const column = grid.columns[cell.column];
  const other = shown.difference ? shown[1].columns[cell.column] : null;
  floating.show(cell, [column, other].filter(Boolean), cell.layer);
  cell.setAttribute("aria-describedby", "cell-card");
  if (shown.length > 1 && !shown.difference) {
    const twin = grids.find((one) => one !== grid);
    twin.echo(cell.column < twin.columns.length ? cell.column : null, cell.layer);
  }
}

function leave(grid) {
  for (const cell of all("td[aria-describedby]", grid.table)) if (cell !== document.activeElement) cell.removeAttribute("aria-describedby");
  requestAnimationFrame(() => {
    const focused = document.activeElement;
    if (focused?.matches?.("td") && focused.matches(":focus-visible") && grid.table.contains(focused) && !grid.table.matches(":hover")) {
      look(grid, focused);
    } else if (!grid.table.matches(":hover")) {
      floating.hide();
      grids.forEach((one) => one.source && one.columns.length && one.echo(null, 0));
    }
  });
}

function clearAll() {
  floating.hide();
  if (state.query) {
    byId("search").value = "";
    search("");
  } else if (state.pins.length) {
    state.pins = [];
    pins();
  }
}

function bindGrid() {
  byId("choose-fact").addEventListener("change", (event) => {
    state.fact = event.target.value;
    if (state.against.startsWith("prompt:")) state.against = "";
    settle();
    if (state.fact !== EVERY && !prompt(state.run)?.blocks[state.lens]) state.lens = state.run.headline;
    refresh(true);
  });
  for (const [id, name] of [["choose-variant", "variant"], ["choose-against", "against"]]) {
    byId(id).addEventListener("change", (event) => {
      state[name] = event.target.value;
      refresh(true);
    });
  }
  bindSearch();
  byId("unpin").addEventListener("click", () => {
    state.pins = [];
    pins();
  });
  bindFiles();
}

function bindSearch() {
  const field = byId("search");
  let wait;
  field.addEventListener("input", () => {
    clearTimeout(wait);
    wait = setTimeout(() => {
      search(field.value);
      say(byId("search-result").textContent);
    }, 120);
  });
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    clearTimeout(wait);
    search(field.value);
    if (state.best) state.best.grid.go(state.best.c, state.best.layer);
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches?.("input:not([type=radio]), select, textarea");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      field.focus();
      field.scrollIntoView({ block: "nearest" });
    } else if (event.key === "Escape") {
      clearAll();
    }
  });
}

function bindFiles() {
  const panes = () => grids.slice(0, shown.difference || shown.length < 2 ? 1 : 2).map((grid) => ({ grid, title: grid.title.textContent }));
  const caption = () => `${state.run.model} · ${prompt(state.run)?.fact ?? state.run.every} · ${byId("legend").firstChild.textContent}`;
  const name = (ending) => `${fileName("grid", state.run.label, state.lens, state.metric)}.${ending}`;
  byId("grid-csv").addEventListener("click", () => {
    const wanted = shown.map((source, i) => ({ grid: shown.difference && i ? { columns: source.columns, layers: source.run.n_layers + 1 } : grids[i] }));
    download(name("csv"), gridCsv(wanted), "text/csv;charset=utf-8");
  });
  byId("grid-svg").addEventListener("click", () => download(name("svg"), svgOf(drawing(panes(), caption(), state.scale)), "image/svg+xml"));
  byId("grid-png").addEventListener("click", async () => download(name("png"), await pngOf(drawing(panes(), caption(), state.scale))));
}
