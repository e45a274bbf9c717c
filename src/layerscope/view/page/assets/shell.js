// The page around: which run is looked at, light or dark, copying the command, sorting a table.

function showRun(run) {
  const place = String(PAGE.runs.indexOf(run));
  for (const node of all("[data-run]")) node.hidden = node.dataset.run !== place;
  if (byId("choose-run")) byId("choose-run").value = place;
  setRun(run);
  state.pins = [];
  byId("pin-list").replaceChildren();
  byId("pins").hidden = true;
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
bindTracking();
bindAnchors();
bindCharts();
bindPrinting();
bindCopy();
bindSorting();
bindNav();
byId("choose-run")?.addEventListener("change", (event) => {
  showRun(PAGE.runs[Number(event.target.value)]);
  settle();
  refresh(true);
});
byId("grid-link").addEventListener("click", async () => {
  const done = await copy(location.href);
  say(done ? "The address is copied." : "Copy the address from the browser's address line.");
});
byId("grid-link").hidden = !link.usable;
addEventListener("popstate", () => link.read());
await link.read();
bindTheme(() => {
  repaint();
  redrawCharts();
});
addEventListener("resize", () => floating.follow(), { passive: true });
addEventListener("scroll", () => floating.follow(), { passive: true });
document.documentElement.dataset.ready = "true";
