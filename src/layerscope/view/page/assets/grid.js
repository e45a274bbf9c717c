// The grid: layers by positions as a table that keeps its cells, so that another lens is a matter of texts and colours.

class Grid {
  constructor(host, on) {
    this.on = on;
    this.title = make("p", { class: "pane-title" });
    this.table = make("table", { class: "lens-grid", role: "grid" });
    this.scroll = make("div", { class: "scroll" }, this.table);
    this.scrubber = new Scrubber(this);
    host.append(this.title, make("div", { class: "grid-frame" }, this.scrubber.node, this.scroll));
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
    this.scroll.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    new ResizeObserver(() => this.#scrolled()).observe(this.scroll);
  }

  #scrolled() {
    const away = this.scroll.scrollWidth - this.scroll.clientWidth - this.scroll.scrollLeft;
    this.table.classList.toggle("gap", away > 4);
    this.scrubber.follow();
    this.on.scroll(this);
  }

  // Take other columns; the table is built again only where its shape changes. `partners` are what they are held against.
  show(columns, layers, title, partners = null) {
    this.title.textContent = title;
    this.partners = partners;
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
    const title = "How many blocks have written: 0 is the embedding, the last is what the head reads";
    const corner = make("th", { class: "corner", scope: "col", title }, make("span", { text: "layer" }));
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
    this.table.classList.toggle("few", width <= PLACES.length);
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
    const lasts = single && this.columns.length > 1 && this.columns.at(-1).position === this.columns[0].prompt.last;
    this.table.classList.toggle("last-stays", lasts && this.columns[0].entry === undefined);
    this.columns.forEach((column, c) => {
      const { name, under, title } = this.#head(column, this.partners?.[c], single);
      this.heads[c].replaceChildren(make("span", { class: "input" }, ...name), make("span", { class: "at", text: under }));
      this.heads[c].title = title;
    });
    const marks = single && this.columns.length ? (this.columns[0].prompt.milestones[this.columns[0].lens] ?? {}) : {};
    this.rows.forEach((row, layer) => {
      const first = marks.rank_1 === layer;
      const strong = marks.strong === layer;
      const mark = strong ? "★" : first ? "◆" : "";
      const { run, lens } = this.columns[0] ?? { run: null };
      const words = run ? statusWords(run, lens, layer) : null;
      const sign = words ? make("span", { class: "status", text: STATUS_SIGNS[run.statuses[lens][layer]], "aria-hidden": "true" }) : null;
      const carried = run?.carried ?? null;
      const effects = carried ? carriedAt(carried, layer) : [];
      const strip = effects.length ? make("span", { class: "carried", "aria-hidden": "true" }, ...effects.map(({ share }) => swatch(share))) : "";
      row.replaceChildren(make("span", { class: "mark", text: mark, "aria-hidden": "true" }), String(layer), sign ?? "", strip);
      const said = [
        `layer ${layer}`,
        first && "the answer is on top at the last position for the first time",
        strong && "it is clearly ahead for the first time",
        words && `probabilities at the last position: ${words}`,
        effects.length && `effect of a patch here: ${effects.map(({ name, share }) => `${share.toFixed(2)} ${name}`).join(", ")}`,
      ];
      row.title = said.filter(Boolean).join("; ");
    });
    this.marks = marks;
  }

  #head(column, partner, single) {
    const token = column.prompt.tokens[column.position];
    if (column.entry !== undefined) {
      const after = token === undefined ? "at the last position" : `after ${visible(token)}`;
      return { name: [PLACES[column.entry]], under: column.entry ? "" : after, title: `Place ${column.entry + 1} of the list ${after}` };
    }
    if (!single) return { name: [column.prompt.fact], under: column.prompt.variant, title: column.prompt.fact };
    const theirs = partner?.prompt.tokens[partner.position];
    const name = [token === undefined ? "last" : tokenNode(token)];
    if (theirs !== undefined && theirs !== token) name.push(" / ", tokenNode(theirs));
    const title = `The token at position ${column.position}${token === undefined ? "" : `, ${visible(token)}`}: cells say what comes after it`;
    return { name, under: column.position, title };
  }

  revealColumn(c) {
    const cell = this.cell(c, this.layers - 1);
    const side = this.rows[0].offsetWidth;
    if (cell.offsetLeft < this.scroll.scrollLeft + side) this.scroll.scrollLeft = cell.offsetLeft - side;
    const over = cell.offsetLeft + cell.offsetWidth - this.scroll.scrollLeft - this.scroll.clientWidth;
    if (over > 0) this.scroll.scrollLeft += over + cell.offsetWidth;
  }

  // Bring a layer into view where it is not.
  reveal(layer) {
    const row = this.rows[layer]?.parentElement;
    if (!row) return;
    const head = this.heads[0]?.offsetHeight ?? 0;
    const { scrollTop, clientHeight } = this.scroll;
    if (row.offsetTop >= scrollTop + head && row.offsetTop + row.offsetHeight <= scrollTop + clientHeight) return;
    this.scroll.scrollTop = row.offsetTop - (clientHeight + head - row.offsetHeight) / 2;
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
    this.scrubber.paint();
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
