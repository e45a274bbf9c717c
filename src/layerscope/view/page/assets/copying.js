// Copying to the clipboard.

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
