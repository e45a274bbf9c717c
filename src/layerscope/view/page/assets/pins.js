// Cells that are pinned: their cards stay below the grid.

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
      (byId("pin-list").querySelector(".close") ?? byId("search")).focus();
    });
    return make("li", { class: "card" }, away, ...cardBody(column, layer, Infinity));
  });
  byId("pin-list").replaceChildren(...cards);
  host.hidden = cards.length === 0;
  say(cards.length ? `${cards.length} pinned` : "nothing pinned");
  repaint();
  link.write(false);
}

