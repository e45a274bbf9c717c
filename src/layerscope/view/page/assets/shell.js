// The page around: which run is looked at, light or dark, copying the command, sorting a table.

function showRun(place) {
  for (const node of all("[data-run]")) node.hidden = node.dataset.run !== String(place);
  chooseRun(PAGE.runs[place]);
  state.pins = [];
  byId("pin-list").replaceChildren();
  byId("pins").hidden = true;
  refresh();
}

function bindTheme() {
  const button = byId("theme");
  const label = () => {
    button.setAttribute("aria-label", isDark() ? "Change to light colours" : "Change to dark colours");
    button.textContent = isDark() ? "☀" : "☾";
  };
  const changed = () => {
    label();
    repaint();
    redrawCharts();
  };
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    changed();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
  label();
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // A page in a frame, or an older browser: what is selected can still be copied.
    const area = make("textarea", { class: "unseen", "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

function bindCopy() {
  for (const button of all("button[data-copy]")) {
    const before = button.textContent;
    button.addEventListener("click", async () => {
      const done = await copy(byId(button.dataset.copy).textContent);
      button.textContent = done ? "Copied" : "Select and copy by hand";
      say(button.textContent);
      setTimeout(() => {
        button.textContent = before;
      }, 2000);
      button.focus();
    });
  }
}

// Tables whose heads are buttons are sorted by them; absent values stay last either way.
function bindSorting() {
  for (const table of all("table.sortable")) {
    const heads = all("thead th", table);
    heads.forEach((head, place) => {
      head.querySelector("button")?.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const value = (row) => row.cells[place].dataset.value ?? row.cells[place].textContent;
        const rows = all("tbody tr", table).sort((one, two) => {
          const [a, b] = [value(one), value(two)];
          if (a === "" || b === "") return (a === "") - (b === "");
          const order = Number.isNaN(Number(a)) || Number.isNaN(Number(b)) ? a.localeCompare(b) : a - b;
          return down ? -order : order;
        });
        table.tBodies[0].append(...rows);
      });
    });
  }
}

function bindNav() {
  const links = new Map(all("nav a").map((link) => [link.hash.slice(1), link]));
  const seen = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        for (const link of links.values()) link.removeAttribute("aria-current");
        const link = links.get(entry.target.id);
        link?.setAttribute("aria-current", "true");
        if (link) link.closest("nav").scrollLeft = link.offsetLeft - link.closest("nav").offsetLeft - 24;
      }
    },
    { rootMargin: "-20% 0px -70% 0px" },
  );
  for (const id of links.keys()) if (byId(id)) seen.observe(byId(id));
}

bindGrid();
bindCharts();
bindCopy();
bindSorting();
bindNav();
byId("choose-run")?.addEventListener("change", (event) => showRun(Number(event.target.value)));
chooseRun(PAGE.runs[0]);
await refresh();
bindTheme();
addEventListener("resize", () => floating.follow(), { passive: true });
addEventListener("scroll", () => floating.follow(), { passive: true });
document.documentElement.dataset.ready = "true";
