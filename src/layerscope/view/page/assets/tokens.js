// Tokens for people: blanks, controls and everything else that would not be seen is written out.

const SIGNS = new Map([
  [" ", "␣"],
  ["\n", "⏎"],
  ["\t", "⇥"],
]);
// Format characters that belong to the letters or pictures on both sides of them, and are not to be torn out.
const JOINED = /(?<=[\p{Extended_Pictographic}\p{Emoji_Modifier}\ufe0f])\u200d(?=\p{Extended_Pictographic})|(?<=[\p{L}\p{M}])[\u200c\u200d](?=[\p{L}\p{M}])/uy;
const HIDDEN = /[\p{C}\p{Zl}\p{Zp}\p{Zs}\u034f\u115f\u1160\u3164\uffa0]/u;
const nodes = new Map();

// A token as pieces: plain text, or a sign in the place of a character that cannot be seen.
function pieces(text) {
  const found = [];
  let plain = "";
  const flush = () => {
    if (plain) found.push({ text: plain, sign: false });
    plain = "";
  };
  for (let i = 0; i < text.length; ) {
    const char = String.fromCodePoint(text.codePointAt(i));
    JOINED.lastIndex = i;
    if (HIDDEN.test(char) && !JOINED.test(text)) {
      flush();
      const code = char.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
      found.push({ text: SIGNS.get(char) ?? `U+${code}`, sign: true, boxed: !SIGNS.has(char) });
    } else {
      // A mark without a letter before it would sit on whatever comes before it on the page.
      plain += !plain && /\p{M}/u.test(char) ? `\u25cc${char}` : char;
    }
    i += char.length;
  }
  flush();
  return found.length ? found : [{ text: "empty", sign: true, boxed: true }];
}

const visible = (text) => pieces(text).map((piece) => piece.text).join("");

function tokenNode(text) {
  if (!nodes.has(text)) {
    const node = make("bdi", { class: "tok" });
    for (const piece of pieces(text)) {
      node.append(piece.sign ? make("span", { class: piece.boxed ? "box" : "sign", text: piece.text }) : piece.text);
    }
    nodes.set(text, node);
  }
  return nodes.get(text).cloneNode(true);
}

const plainForm = (text) => text.normalize("NFC").toLocaleLowerCase("und");

// Tokens that a search means: the text as it is or as it is shown, spaces around it left aside; parts if nothing is so.
function searched(query) {
  const wanted = plainForm(query).trim();
  const exact = new Set();
  const parts = new Set();
  if (!wanted) return { tokens: exact, exact: true };
  PAGE.vocabulary.texts.forEach((text, i) => {
    const form = plainForm(text);
    if (form.trim() === wanted || form === query || plainForm(visible(text)) === wanted) exact.add(i + 1);
    else if (form.includes(wanted)) parts.add(i + 1);
  });
  return exact.size ? { tokens: exact, exact: true } : { tokens: parts, exact: false };
}
