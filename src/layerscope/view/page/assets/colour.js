// Colours of cells, with text that can be read on each of them.

const VIRIDIS = ["440154", "482475", "414487", "355f8d", "2a788e", "21918c", "22a884", "44bf70", "7ad151", "bddf26", "fde725"];
// Blue below, orange above; told apart by every common kind of colour vision.
const DIVERGING = ["0b4f8a", "3a7fbd", "84b3d9", "c8dcea", "f3f2ef", "f6d3ac", "eda35c", "cf6f1e", "964403"];
const rgb = (hex) => [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16));
const STOPS = { viridis: VIRIDIS.map(rgb), diverging: DIVERGING.map(rgb) };

const mix = (a, b, t) => a.map((value, i) => value + (b[i] - value) * t);
const css = (colour) => `rgb(${colour.map(Math.round).join(" ")})`;

function shade(name, t) {
  const stops = STOPS[name];
  const at = Math.min(Math.max(t, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  return mix(stops[low], stops[low + 1], at - low);
}

// Relative luminance as WCAG 2 defines it.
function luminance(colour) {
  const [r, g, b] = colour.map((value) => {
    const share = value / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

// Black or white, whichever stands out more; one of them always has a contrast of 4.58 or more.
const ink = (colour) => ((luminance(colour) + 0.05) ** 2 > 0.05 * 1.05 ? "#000" : "#fff");

const isDark = () => {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
};
const surface = (dark = isDark()) => (dark ? [23, 27, 33] : [255, 255, 255]);

// What may be shown by colour. `share` is 1 where the row is nearest to an answer, so bright always means near.
const METRICS = {
  entropy: {
    label: "Entropy", unit: "bits", field: "entropy", probability: true,
    share: (value, run) => 1 - value / Math.log2(run.d_vocab),
    ends: (run) => [`${Math.log2(run.d_vocab).toFixed(1)} bits`, "0 bits"],
    apart: (a, b) => a - b, apartUnit: "bits",
  },
  pTop1: {
    label: "Top p", unit: "", field: "pTop1", probability: true,
    share: (value) => value, ends: () => ["0", "1"], apart: (a, b) => a - b, apartUnit: "",
  },
  pAnswer: {
    label: "Answer p", unit: "", field: "pAnswer", probability: true,
    share: (value) => value, ends: () => ["0", "1"], apart: (a, b) => a - b, apartUnit: "",
  },
  rank: {
    label: "Answer rank", unit: "", field: "rank", probability: false,
    share: (value, run) => 1 - Math.log(value) / Math.log(run.d_vocab),
    ends: (run) => [run.d_vocab.toLocaleString("en"), "rank 1"],
    apart: (a, b) => Math.log2(a) - Math.log2(b), apartUnit: "doublings of the rank",
  },
  kl: {
    label: "KL to final", unit: "bits", field: "kl", probability: true,
    share: (value, run) => 1 - value / run.kl_bits,
    ends: (run) => [`≥ ${run.kl_bits} bits`, "0 bits"],
    apart: (a, b) => a - b, apartUnit: "bits",
  },
};

// Of a run with one position: a cell is a place in its list, and its colour says that token's probability.
const SHOWN = {
  label: "Token probability", unit: "", field: "shown", probability: true,
  share: (value) => value, ends: () => ["0", "1"], apart: (a, b) => a - b, apartUnit: "",
};

const gradient = (name) =>
  `linear-gradient(to right, ${Array.from({ length: 17 }, (_, i) => css(shade(name, i / 16))).join(", ")})`;
