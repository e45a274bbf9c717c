// The index of a bundle.

bindSorting();
bindTheme();
document.documentElement.dataset.ready = "true";
