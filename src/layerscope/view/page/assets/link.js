// What is shown, as the part of the address behind the #: so that a cell can be sent to someone, and Back goes back.

const link = {
  held: false,
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
    put("track", state.tracked.map(({ word }) => word).join(","), "");
    put("find", state.query, "");
    const here = state.pins.filter(({ column }) => column.run === run && column.lens === state.lens && column.prompt === prompt(run));
    put("cell", here.map(({ column, layer }) => `${layer}@${column.position}`).join(","), "");
    return words.toString();
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
    this.held = true;
    const run = PAGE.runs.find(({ label }) => label === words.get("run")) ?? PAGE.runs[0];
    showRun(run);
    for (const [name, key] of [["fact", "fact"], ["variant", "wording"], ["lens", "lens"], ["metric", "colour"], ["against", "against"]]) {
      if (words.has(key)) state[name] = words.get(key);
    }
    settle();
    state.side = words.get("shown") === "side";
    state.tracked = (words.get("track") ?? "").split(",").filter(Boolean).slice(0, MOST_FOLLOWED).map(followed);
    state.query = byId("search").value = words.get("find") ?? "";
    await refresh();
    const cells = (words.get("cell") ?? "").split(",").filter(Boolean).map((cell) => cell.split("@").map(Number));
    for (const [layer, position] of cells) {
      const column = shown[0].columns.find((one) => one.position === position);
      if (column && layer in grids[0].rows) toggle(column, layer);
    }
    if (cells.length) {
      pins();
      grids[0].reveal(cells[0][0]);
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
