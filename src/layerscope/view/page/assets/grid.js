// The grid: layers by positions as a table that keeps its cells, so that another lens is a matter of texts and colours.

class Grid {
  constructor(host, on) {
    this.on = on;
    this.title = make("p", { class: "pane-title" });
    this.table = make("table", { class: "lens-grid", role: "grid" });
    this.scroll = make("div", { class: "scroll" }, this.table);
    host.append(this.title, this.scroll);
    this.columns = [];
    this.layers = 0;
    this.focus = null;
    // A pointer that lies still while keys move the focus, or cells change under it, points at nothing.
    this.table.addEventListener("pointermove", () => (this.still = false), { passive: true });
    this.table.addEventListener("pointerover", (event) => this.#point(event));
    this.table.addEventListener("pointerleave", () => this.on.leave(this));
    this.table.addEventListener("focusin", (event) => this.#focused(event));
    this.table.addEventListener("focusout", () => this.on.leave(this));
    this.table.addEventListener("click", (event) => this.#clicked(event));
    this.table.addEventListener("keydown", (event) => this.#key(event));
    this.scroll.addEventListener("scroll", () => this.on.scroll(this), { passive: true });
  }

  // Take other columns; the table is built again only where its shape changes.
  show(columns, layers, title) {
    this.title.textContent = title;
    this.table.setAttribute("aria-label", `${title}: most likely token by layer and position`);
    const shape = `${columns.length}x${layers}`;
    this.columns = columns;
    this.layers = layers;
    if (shape !== this.shape) this.#build();
    this.shape = shape;
    this.#heads();
  }

  #build() {
    const { columns, layers } = this;
    const width = columns.length;
    this.heads = columns.map(() => make("th", { scope: "col" }));
    const corner = make("th", { class: "corner", scope: "col" }, make("span", { text: "layer" }));
    const head = make("thead", {}, make("tr", {}, corner, ...this.heads));
    this.cells = new Array(width * layers);
    this.rows = new Array(layers);
    const body = make("tbody");
    for (let layer = layers - 1; layer >= 0; layer--) {
      this.rows[layer] = make("th", { scope: "row" });
      const row = make("tr", {}, this.rows[layer]);
      for (let c = 0; c < width; c++) {
        const hold = make("div", { class: "hold" });
        const cell = make("td", { role: "gridcell", tabindex: -1 }, hold);
        cell.hold = hold;
        cell.layer = layer;
        cell.column = c;
        this.cells[layer * width + c] = cell;
        row.append(cell);
      }
      body.append(row);
    }
    this.table.replaceChildren(head, body);
    this.table.classList.toggle("few", width <= 4);
    this.table.classList.toggle("deep", layers > 24);
    this.table.style.setProperty("--columns", width);
    this.focus = null;
    const first = this.cells[(layers - 1) * width + width - 1];
    if (first) first.tabIndex = 0;
    this.entry = first;
    this.scroll.scrollLeft = this.scroll.scrollWidth; // the last position is what most come to see
  }

  #heads() {
    const single = new Set(this.columns.map((column) => column.prompt)).size === 1;
    this.columns.forEach((column, c) => {
      const token = column.prompt.tokens[column.position];
      const name = single ? (token === undefined ? "last" : tokenNode(token)) : column.prompt.fact;
      const under = single ? column.position : column.prompt.variant;
      this.heads[c].replaceChildren(make("span", { class: "input" }, name), make("span", { class: "at", text: under }));
      this.heads[c].title = single && token !== undefined ? visible(token) : column.prompt.fact;
    });
    const marks = single && this.columns.length ? (this.columns[0].prompt.milestones[this.columns[0].lens] ?? {}) : {};
    this.rows.forEach((row, layer) => {
      const first = marks.rank_1 === layer;
      const strong = marks.strong === layer;
      const mark = strong ? "★" : first ? "◆" : "";
      row.replaceChildren(make("span", { class: "mark", text: mark, "aria-hidden": "true" }), String(layer));
      row.title = [first && "first layer with the answer on top at the last position", strong && "first layer at which it is clearly ahead"]
        .filter(Boolean)
        .join("; ");
    });
  }

  // `look(column index, layer)` says what a cell shows: nodes, colour, classes and what is said of it.
  paint(look) {
    const width = this.columns.length;
    for (let layer = 0; layer < this.layers; layer++) {
      for (let c = 0; c < width; c++) {
        const cell = this.cells[layer * width + c];
        const seen = look(c, layer);
        cell.hold.replaceChildren(...seen.nodes);
        cell.className = seen.classes;
        cell.style.backgroundColor = seen.colour ? css(seen.colour) : "";
        cell.style.color = seen.colour ? ink(seen.colour) : "";
        if (seen.pinned) cell.setAttribute("aria-selected", "true");
        else cell.removeAttribute("aria-selected");
      }
    }
  }

  cell(c, layer) {
    return this.cells[layer * this.columns.length + c];
  }

  // Draw attention to the cell that answers one of another grid.
  echo(c, layer) {
    this.echoed?.classList.remove("echo");
    this.echoed = c === null || layer >= this.layers ? null : this.cell(c, layer);
    this.echoed?.classList.add("echo");
  }

  #point(event) {
    const cell = event.target.closest("td");
    const moved = event.clientX !== this.x || event.clientY !== this.y;
    [this.x, this.y] = [event.clientX, event.clientY];
    if (moved) this.still = false;
    if (cell && !this.still && event.pointerType !== "touch") this.on.look(this, cell);
  }

  #focused(event) {
    const cell = event.target.closest("td");
    if (!cell) return;
    if (this.entry) this.entry.tabIndex = -1;
    cell.tabIndex = 0;
    this.entry = cell;
    this.on.look(this, cell);
  }

  #clicked(event) {
    const cell = event.target.closest("td");
    if (!cell) return;
    cell.focus({ preventScroll: true });
    this.on.pin(this, cell);
  }

  go(c, layer) {
    const cell = this.cell(c, layer);
    cell.focus({ preventScroll: true });
    cell.scrollIntoView({ block: "nearest", inline: "nearest" });
    this.on.look(this, cell);
  }

  #key(event) {
    const cell = event.target.closest("td");
    if (!cell || event.altKey || event.metaKey) return;
    this.still = true;
    const width = this.columns.length;
    const last = this.layers - 1;
    let { column: c, layer } = cell;
    const page = 10;
    if (event.key === "ArrowLeft") c -= 1;
    else if (event.key === "ArrowRight") c += 1;
    else if (event.key === "ArrowUp") layer += 1;
    else if (event.key === "ArrowDown") layer -= 1;
    else if (event.key === "PageUp") layer += page;
    else if (event.key === "PageDown") layer -= page;
    else if (event.key === "Home") [c, layer] = [0, event.ctrlKey ? last : layer];
    else if (event.key === "End") [c, layer] = [width - 1, event.ctrlKey ? 0 : layer];
    else if (event.key === "Enter" || event.key === " ") this.on.pin(this, cell);
    else return;
    event.preventDefault();
    c = Math.min(Math.max(c, 0), width - 1);
    layer = Math.min(Math.max(layer, 0), last);
    if (c !== cell.column || layer !== cell.layer) this.go(c, layer);
  }
}
