// A page of tables that can be sorted, and charts.

bindCharts();
bindPrinting();
bindSorting();
bindTheme(redrawCharts);
document.documentElement.dataset.ready = "true";
