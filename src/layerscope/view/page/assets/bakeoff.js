// The page of a bake-off: a table that can be sorted, and charts.

bindCharts();
bindPrinting();
bindSorting();
bindTheme(redrawCharts);
document.documentElement.dataset.ready = "true";
