// A strip beside a grid that is taller than its frame: every layer in the colour of its last cell, and what is in view.

class Scrubber {
  constructor(grid) {
    this.grid = grid;
    this.canvas = make("canvas", { "aria-hidden": "true" });
    this.view = make("span", { class: "view" });
    const said = { role: "slider", tabindex: 0, "aria-label": "Layers in view", "aria-orientation": "vertical", hidden: true };
    this.node = make("div", { class: "scrubber", ...said }, this.canvas, this.view);
    this.node.addEventListener("pointerdown", (event) => this.#grab(event));
    this.node.addEventListener("pointermove", (event) => event.buttons && this.#go(event));
    this.node.addEventListener("keydown", (event) => this.#key(event));
  }

  // One line of the strip for each layer, the deepest at the top as in the grid; a mark where the answer comes on top.
  paint() {
    const { grid, canvas } = this;
    const { layers } = grid;
    const last = grid.columns[0]?.entry === undefined ? grid.columns.length - 1 : 0;
    canvas.width = 1;
    canvas.height = layers;
    const pen = canvas.getContext("2d");
    for (let layer = 0; layer < layers && last >= 0; layer++) {
      pen.fillStyle = grid.cell(last, layer).style.backgroundColor || "#8888";
      pen.fillRect(0, layers - 1 - layer, 1, 1);
    }
    this.follow();
  }

  // In the next frame, when the page is laid out anyway.
  follow() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      this.#follow();
    });
  }

  #follow() {
    const { scrollTop, scrollHeight, clientHeight } = this.grid.scroll;
    const tall = scrollHeight > clientHeight + 4;
    this.node.hidden = !tall;
    if (!tall) return;
    this.view.style.insetBlockStart = `${(scrollTop / scrollHeight) * 100}%`;
    this.view.style.blockSize = `${(clientHeight / scrollHeight) * 100}%`;
    const { layers } = this.grid;
    const top = Math.round(layers - 1 - (scrollTop / scrollHeight) * layers);
    const bottom = Math.max(0, Math.round(layers - ((scrollTop + clientHeight) / scrollHeight) * layers));
    for (const [name, value] of [["valuemin", 0], ["valuemax", layers - 1], ["valuenow", top], ["valuetext", `layers ${bottom} to ${top}`]]) {
      this.node.setAttribute(`aria-${name}`, value);
    }
  }

  #grab(event) {
    this.node.setPointerCapture(event.pointerId);
    this.#go(event);
  }

  #go(event) {
    const box = this.node.getBoundingClientRect();
    const { scroll } = this.grid;
    scroll.scrollTop = ((event.clientY - box.top) / box.height) * scroll.scrollHeight - scroll.clientHeight / 2;
  }

  #key(event) {
    const { scroll, layers } = this.grid;
    const row = scroll.scrollHeight / layers;
    const steps = { ArrowUp: -row, ArrowDown: row, PageUp: -scroll.clientHeight, PageDown: scroll.clientHeight, Home: -scroll.scrollHeight, End: scroll.scrollHeight };
    if (!(event.key in steps)) return;
    event.preventDefault();
    scroll.scrollTop += steps[event.key];
  }
}
