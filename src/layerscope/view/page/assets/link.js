// What is shown, as the part of the address behind the #: so that a cell can be sent to someone, and Back goes back.

const link = {
  held: false,
  turn: 0,
  // A page inside a notebook's frame has no address of its own.
  usable: location.protocol !== "about:",

  words() {
    const { run } = state;
    const fresh = defaultsOf(run);
    const words = new URLSearchParams();
    const put = (name, value, usual) => {
      if (value && value !== usual) words.set(name, value);
    };
    put("run", PAGE.runs.length > 1 ? run.label : "", PAGE.runs[0].label);
    put("fact", state.fact, fresh.fact);
    put("wording", state.variant, fresh.variant);
    put("lens", state.lens, fresh.lens);
    put("colour", state.metric, fresh.metric);
    put("against", state.against, "");
    put("shown", state.side ? "side" : "", "");
    for (const { word } of state.tracked) words.append("track", word);
    put("find", state.query, "");
    for (const { column, layer } of state.pins) words.append("cell", this.cell(column, layer));
    return words.toString();
  },

  // A pinned cell: with its lens and prompt where they are not those that are shown, with its run where that is another.
  cell(column, layer) {
    const { run } = column;
    const words = [layer, column.position];
    if (column.lens !== state.lens || column.prompt !== prompt(run) || run !== state.run) words.push(column.lens, run.prompts.indexOf(column.prompt));
    if (run !== state.run) words.push(PAGE.runs.indexOf(run));
    return words.join("@");
  },

  async pinned(word) {
    const [layer, position, lens, place, index] = word.split("@");
    const run = index === undefined ? state.run : PAGE.runs[Number(index)];
    const own = place === undefined ? run && prompt(run) : run?.prompts[Number(place)];
    const source = { run, lens: lens ?? state.lens, prompt: own, every: false };
    if (!own?.blocks[source.lens] || !(Number(layer) >= 0 && Number(layer) <= run.n_layers)) return null;
    const column = (await columnsOf(source)).find((one) => one.position === Number(position));
    return column ? { key: keyOf(column, Number(layer)), column, layer: Number(layer) } : null;
  },

  // `push` makes a step that Back undoes; what changes with every key does not.
  write(push) {
    if (this.held || !this.usable) return;
    const words = this.words();
    if (words === location.hash.slice(1)) return;
    const address = words ? `#${words}` : location.pathname + location.search;
    if (push) history.pushState(null, "", address);
    else history.replaceState(null, "", address);
  },

  async read() {
    const words = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
    const mine = ++this.turn;
    this.held = true;
    const run = PAGE.runs.find(({ label }) => label === words.get("run")) ?? PAGE.runs[0];
    showRun(run);
    for (const [name, key] of [["fact", "fact"], ["variant", "wording"], ["lens", "lens"], ["metric", "colour"], ["against", "against"]]) {
      if (words.has(key)) state[name] = words.get(key);
    }
    settle();
    state.side = words.get("shown") === "side";
    state.tracked = [...new Set(words.getAll("track"))].filter(Boolean).slice(0, MOST_FOLLOWED).map(followed);
    state.query = byId("search").value = words.get("find") ?? "";
    await refresh();
    const cells = (await Promise.all(words.getAll("cell").map((word) => this.pinned(word)))).filter(Boolean);
    if (mine !== this.turn) return; // another address came meanwhile
    state.pins = [...new Map(cells.map((cell) => [cell.key, cell])).values()];
    if (cells.length) {
      pins();
      grids[0].reveal(cells[0].layer);
    }
    trackedChanged();
    this.held = false;
  },
};

// A link within the page moves the view, and leaves the address to what is shown.
function bindAnchors() {
  for (const anchor of all('a[href^="#"]')) {
    anchor.addEventListener("click", (event) => {
      const target = byId(anchor.hash.slice(1));
      if (!target) return;
      event.preventDefault();
      target.scrollIntoView();
      target.tabIndex = -1;
      target.focus({ preventScroll: true });
    });
  }
}
