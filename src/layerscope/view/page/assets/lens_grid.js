// The lens grid's controls: which run, prompt, lens and colour, against what, what is searched and what is pinned.

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
  pins: [],
};
const hosts = [byId("pane-a"), byId("pane-b")];
const grids = hosts.map((host) => new Grid(host, { look, leave, pin, scroll: scrolled }));
let shown = [];
let turn = 0;

const factOf = (prompt) => `${prompt.prompt_id}/${prompt.fact_index ?? ""}`;
const promptOf = (run, fact, variant) => {
  const own = run.prompts.filter((prompt) => factOf(prompt) === fact);
  return own.find((prompt) => prompt.variant === variant) ?? own[0] ?? null;
};

function options(select, choices, chosen) {
  select.replaceChildren(...choices.map(([value, text]) => make("option", { value, text })));
  select.value = choices.some(([value]) => value === chosen) ? chosen : (choices[0]?.[0] ?? "");
  select.disabled = choices.length < 2;
  return select.value;
}

// A row of radio buttons that look like one control; they stay while their names do, and so does the focus on them.
function segments(host, name, choices, chosen, change) {
  const row = host.querySelector(".row");
  const names = choices.map(({ value }) => value).join("\n");
  if (row.names !== names) {
    row.replaceChildren(
      ...choices.map(({ value, text }) => make("label", {}, make("input", { type: "radio", name, value }), make("span", { text }))),
    );
    row.names = names;
  }
  all("input", row).forEach((input, i) => {
    const { value, off, why } = choices[i];
    input.checked = value === chosen;
    input.disabled = Boolean(off);
    input.onchange = () => change(value);
    input.parentElement.title = why ?? "";
  });
}

function chooseRun(run) {
  state.run = run;
  const facts = [...new Map(run.prompts.map((prompt) => [factOf(prompt), prompt.fact])).entries()];
  if (facts.length > 1) facts.push([EVERY, `${run.every}, last position`]);
  const primary = run.prompts.find((prompt) => prompt.prompt_id === "pos") ?? run.prompts[0];
  state.fact = options(byId("choose-fact"), facts, primary && factOf(primary));
  state.variant = primary?.variant ?? null;
  state.lens = run.headline;
  state.metric = run.probabilities ? "entropy" : "rank";
  state.against = "";
  chooseVariants();
}

function chooseVariants() {
  const { run } = state;
  const own = run.prompts.filter((prompt) => state.fact === EVERY || factOf(prompt) === state.fact);
  const variants = [...new Set(own.map((prompt) => prompt.variant))];
  state.variant = options(byId("choose-variant"), variants.map((variant) => [variant, variant]), state.variant);
}

const prompt = (run) => (state.fact === EVERY ? null : promptOf(run, state.fact, state.variant));

function sourceOf(run, lens) {
  return { run, lens, prompt: prompt(run), variant: state.variant };
}

// Against what the grid may be held: other lenses of the run, and the same lens of other runs.
function rivals() {
  const found = [["", "nothing"]];
  for (const lens of state.run.lenses) if (lens !== state.lens) found.push([`lens:${lens}`, `lens ${lens}`]);
  PAGE.runs.forEach((run, i) => {
    if (run !== state.run) found.push([`run:${i}`, run.label]);
  });
  return found;
}

function rival() {
  const [kind, rest] = [state.against.slice(0, state.against.indexOf(":")), state.against.slice(state.against.indexOf(":") + 1)];
  if (kind === "lens") return sourceOf(state.run, rest);
  if (kind !== "run") return null;
  const run = PAGE.runs[Number(rest)];
  return sourceOf(run, run.lenses.includes(state.lens) ? state.lens : run.headline);
}

// Why two sets of columns cannot be taken from one another cell by cell; empty where they can.
function unlike(a, b) {
  if (a.run.n_layers !== b.run.n_layers) {
    return `The models have ${a.run.n_layers} and ${b.run.n_layers} layers, so no cell answers another: they stand side by side.`;
  }
  const places = (columns) => columns.map((c) => `${factOf(c.prompt)}@${c.position}`).join();
  if (places(a.columns) !== places(b.columns)) return "They were decoded at different positions: they stand side by side.";
  const inputs = (columns) => columns.map((c) => c.prompt.tokens[c.position]).join("\u0000");
  if (a.run !== b.run && inputs(a.columns) !== inputs(b.columns)) return "The prompts have different tokens: they stand side by side.";
  return "";
}

const nameOf = (source) => (PAGE.runs.length > 1 ? `${source.run.label} · ${source.lens}` : `lens ${source.lens}`);

async function refresh() {
  const mine = ++turn;
  const started = performance.now();
  const own = sourceOf(state.run, state.lens);
  const other = rival();
  own.columns = await columnsOf(own);
  if (other) other.columns = await columnsOf(other);
  if (mine !== turn) return;
  floating.hide();
  const why = other ? unlike(own, other) : "";
  const difference = Boolean(other) && !state.side && !why;
  shown = !other ? [own] : difference ? [own, other] : [own, other];
  shown.difference = difference;
  controls(own, other, why);
  const panes = difference || !other ? [own] : [own, other];
  byId("panes").classList.toggle("two", panes.length > 1);
  hosts[1].hidden = panes.length < 2;
  panes.forEach((source, i) => {
    const title = difference ? `${nameOf(own)} minus ${nameOf(other)}` : nameOf(source);
    grids[i].source = source;
    grids[i].show(source.columns, source.run.n_layers + 1, title);
    grids[i].title.hidden = !other;
  });
  repaint();
  byId("grid-empty").hidden = own.columns.length > 0;
  document.documentElement.dataset.gridMs = (performance.now() - started).toFixed(1);
}

function controls(own, other, why) {
  const { run } = state;
  const held = (lens) => (state.fact === EVERY ? run.prompts.some((p) => p.blocks[lens]) : Boolean(prompt(run)?.blocks[lens]));
  segments(
    byId("choose-lens"), "lens",
    run.lenses.map((lens) => ({ value: lens, text: lens, off: !held(lens), why: held(lens) ? null : "This prompt was not read through it." })),
    state.lens,
    (lens) => {
      state.lens = lens;
      if (state.against === `lens:${lens}`) state.against = "";
      refresh();
    },
  );
  const colours = Object.entries(METRICS).map(([value, metric]) => {
    const withheld = metric.probability ? !run.probabilities : !run.ranks;
    const absent = !withheld && !own.columns.some((column) => has(column, metric.field));
    const reason = withheld ? "Withheld: the identity check failed." : absent ? "Not recorded for these rows." : null;
    return { value, text: metric.label, off: withheld || absent, why: reason };
  });
  const usable = colours.filter(({ off }) => !off).map(({ value }) => value);
  if (!usable.includes(state.metric) && usable.length) state.metric = usable[0];
  segments(byId("choose-colour"), "colour", colours, state.metric, (metric) => {
    state.metric = metric;
    repaint();
  });
  state.against = options(byId("choose-against"), rivals(), state.against);
  const mode = byId("choose-mode");
  mode.hidden = !other;
  segments(
    mode, "mode",
    [
      { value: "difference", text: "difference", off: Boolean(why), why: why || null },
      { value: "side", text: "side by side" },
    ],
    state.side || why ? "side" : "difference",
    (value) => {
      state.side = value === "side";
      refresh();
    },
  );
  const withheld = run.probabilities ? "" : `The identity check failed: ${run.ranks ? "probabilities are withheld, ranks stand" : "neither probabilities nor ranks stand, and tokens alone are shown"}.`;
  const notes = [withheld, why, prompt(run) && run.missing].filter(Boolean);
  byId("grid-note").textContent = notes.join(" ");
  byId("grid-note").hidden = notes.length === 0;
  promptText();
}

const has = (column, field) => {
  for (let layer = 0; layer <= column.run.n_layers; layer++) if (!Number.isNaN(column.value(field, layer))) return true;
  return false;
};

function promptText() {
  const own = prompt(state.run);
  const node = byId("prompt-text");
  if (!own) {
    node.replaceChildren("Each column is one prompt at its last position.");
    return;
  }
  const answer = own.answers.length ? make("span", { class: "answer" }, " → ", make("bdi", { text: own.answers.join(" / ") })) : null;
  node.replaceChildren(make("bdi", { text: own.text ?? "" }), answer ?? "");
}

function legend(difference, most) {
  const metric = METRICS[state.metric];
  const node = byId("legend");
  node.hidden = metric.probability ? !state.run.probabilities : !state.run.ranks;
  const bar = make("span", { class: "ramp", "aria-hidden": "true" });
  bar.style.backgroundImage = gradient(difference ? "diverging" : "viridis");
  const [low, high] = difference ? [`−${most.toPrecision(2)}`, `+${most.toPrecision(2)} ${metric.apartUnit}`] : metric.ends(state.run);
  const name = difference ? `${metric.label}, difference` : metric.label;
  state.scale = { name: difference ? "diverging" : "viridis", ends: [low, high] };
  node.replaceChildren(make("span", { class: "legend-name", text: name }), make("span", { text: low }), bar, make("span", { text: high }));
  const caution = byId("colour-caution");
  caution.hidden = !(metric.probability && state.run.suppressed);
}

function repaint() {
  const metric = METRICS[state.metric];
  const { difference } = shown;
  const search = state.query ? searched(state.query) : null;
  const pinned = new Set(state.pins.map((one) => one.key));
  const empty = surface();
  let most = 0;
  const [own, other] = shown;
  if (difference) {
    const sizes = [];
    own.columns.forEach((column, c) => {
      for (let layer = 0; layer <= own.run.n_layers; layer++) {
        const apart = Math.abs(metric.apart(column.value(metric.field, layer), other.columns[c].value(metric.field, layer)));
        if (Number.isFinite(apart)) sizes.push(apart);
      }
    });
    sizes.sort((a, b) => a - b);
    most = sizes[Math.floor((sizes.length - 1) * 0.98)] || 1;
  }
  legend(difference, most);
  const counts = { cells: 0, total: 0, best: null };
  for (const grid of grids.slice(0, difference || !other ? 1 : 2)) {
    const { run, columns } = grid.source;
    const answers = columns.map((column) => new Set(column.prompt.answer_tokens));
    grid.table.classList.toggle("difference", Boolean(difference));
    grid.paint((c, layer) => {
      const column = columns[c];
      const there = column.state(layer);
      const token = column.top(layer);
      if (!there) return { nodes: [], classes: "absent", colour: null };
      if (there & 2) return { nodes: ["not finite"], classes: "absent", colour: null };
      const value = column.value(metric.field, layer);
      let share;
      if (difference) share = 0.5 + metric.apart(value, other.columns[c].value(metric.field, layer)) / most / 2;
      else share = metric.share(value, run);
      let colour = Number.isFinite(share) ? shade(difference ? "diverging" : "viridis", share) : null;
      const classes = [];
      if (!colour) classes.push("bare");
      const nodes = token ? [named(token, answers[c])] : [];
      if (difference) {
        const second = other.columns[c].top(layer);
        if (second && second !== token && tokenText(second) !== tokenText(token)) {
          classes.push("two");
          nodes.push(make("span", { class: "second" }, named(second, answers[c])));
        }
      }
      if (search) {
        counts.total += 1;
        const rank = column.rankOf(search.tokens, layer);
        if (rank) {
          classes.push("found");
          nodes.push(make("span", { class: "hit", text: rank }));
          counts.cells += 1;
          if (!counts.best || rank < counts.best.rank) counts.best = { rank, layer, c, grid, position: column.position };
        } else if (colour) {
          colour = mix(colour, empty, 0.78);
        }
      }
      const key = keyOf(column, layer);
      if (pinned.has(key)) classes.push("pinned");
      return { nodes, classes: classes.join(" "), colour, pinned: pinned.has(key) };
    });
  }
  searchResult(search, counts);
}

function searchResult(search, counts) {
  state.best = counts.best;
  const node = byId("search-result");
  if (!search) {
    node.textContent = "";
    return;
  }
  if (!search.tokens.size) node.textContent = "No list of this page names such a token.";
  else if (!counts.cells) node.textContent = "In none of the lists shown here.";
  else {
    const { rank, layer, position } = counts.best;
    const kind = search.exact ? "" : `${search.tokens.size} tokens contain it · `;
    node.textContent = `${kind}in ${counts.cells} of ${counts.total} cells · best rank ${rank}, layer ${layer}, position ${position}`;
  }
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

const keyOf = (column, layer) =>
  [PAGE.runs.indexOf(column.run), column.run.prompts.indexOf(column.prompt), column.lens, column.position, layer].join("/");

function pin(grid, cell) {
  toggle(grid.columns[cell.column], cell.layer);
  if (shown.difference) {
    const twin = shown[1].columns[cell.column];
    const mine = state.pins.some((one) => one.key === keyOf(grid.columns[cell.column], cell.layer));
    const theirs = state.pins.some((one) => one.key === keyOf(twin, cell.layer));
    if (mine !== theirs) toggle(twin, cell.layer);
  }
  pins();
}

function toggle(column, layer) {
  const key = keyOf(column, layer);
  const before = state.pins.length;
  state.pins = state.pins.filter((one) => one.key !== key);
  if (state.pins.length === before) state.pins.push({ key, column, layer });
}

function pins() {
  const host = byId("pins");
  const cards = state.pins.map(({ key, column, layer }) => {
    const away = make("button", { class: "close", type: "button", "aria-label": `Unpin layer ${layer}, position ${column.position}`, text: "×" });
    away.addEventListener("click", () => {
      state.pins = state.pins.filter((one) => one.key !== key);
      pins();
    });
    return make("li", { class: "card" }, away, ...cardBody(column, layer, Infinity));
  });
  byId("pin-list").replaceChildren(...cards);
  host.hidden = cards.length === 0;
  say(cards.length ? `${cards.length} pinned` : "nothing pinned");
  repaint();
}

function clearAll() {
  floating.hide();
  if (state.query) {
    state.query = byId("search").value = "";
    repaint();
  } else if (state.pins.length) {
    state.pins = [];
    pins();
  }
}

function bindGrid() {
  byId("choose-fact").addEventListener("change", (event) => {
    state.fact = event.target.value;
    chooseVariants();
    if (state.fact !== EVERY && !prompt(state.run)?.blocks[state.lens]) state.lens = state.run.headline;
    refresh();
  });
  byId("choose-variant").addEventListener("change", (event) => {
    state.variant = event.target.value;
    refresh();
  });
  byId("choose-against").addEventListener("change", (event) => {
    state.against = event.target.value;
    refresh();
  });
  let wait;
  byId("search").addEventListener("input", (event) => {
    clearTimeout(wait);
    wait = setTimeout(() => {
      state.query = event.target.value;
      repaint();
      say(byId("search-result").textContent);
    }, 120);
  });
  byId("search").addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    clearTimeout(wait);
    state.query = event.target.value;
    repaint();
    if (state.best) state.best.grid.go(state.best.c, state.best.layer);
  });
  byId("unpin").addEventListener("click", () => {
    state.pins = [];
    pins();
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches?.("input:not([type=radio]), select, textarea");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      byId("search").focus();
      byId("search").scrollIntoView({ block: "nearest" });
    } else if (event.key === "Escape") {
      clearAll();
    }
  });
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
