"use strict";
(() => {
  const root = document.documentElement;
  const store = {
    get: (name) => { try { return localStorage.getItem(name); } catch { return null; } },
    set: (name, value) => { try { localStorage.setItem(name, value); } catch { /* not from a file */ } },
  };

  // the theme of the system, until the reader wants the other one
  const chosen = store.get("pyimgano-theme");
  if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen;
  const theme = document.getElementById("theme");
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const dark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    store.set("pyimgano-theme", root.dataset.theme);
  });

  // a click on a picture enlarges it
  const viewer = document.getElementById("viewer");
  const buttons = [...document.querySelectorAll("button.pictures")];
  let at = 0;
  const show = (number) => {
    at = (number + buttons.length) % buttons.length;
    const button = buttons[at];
    const images = [...button.querySelectorAll("img")].map((image) => {
      const large = new Image();
      large.src = image.src;
      large.alt = image.alt;
      return large;
    });
    document.getElementById("viewer-images").replaceChildren(...images);
    document.getElementById("viewer-title").textContent = button.dataset.title;
    document.getElementById("viewer-path").textContent = button.dataset.path;
    if (!viewer.open) viewer.showModal();
  };
  buttons.forEach((button, number) => button.addEventListener("click", () => show(number)));
  const listen = (name, action) => document.getElementById(name).addEventListener("click", action);
  listen("previous", () => show(at - 1));
  listen("next", () => show(at + 1));
  listen("close", () => viewer.close());
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  viewer.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") show(at - 1);
    if (event.key === "ArrowRight") show(at + 1);
  });
  viewer.addEventListener("close", () => buttons[at].focus());

  // a page that is still being written is read again, but not under the reader's hands
  const seconds = Number(root.dataset.reload || 0);
  if (seconds > 0) {
    setInterval(() => { if (!viewer.open) location.reload(); }, 1000 * seconds);
  }

  // on paper are all pictures, and of what is folded away what a warning is about
  addEventListener("beforeprint", () => {
    document.querySelectorAll("img").forEach((one) => { one.loading = "eager"; });
    document.querySelectorAll(".wrongs details").forEach((one) => { one.open = true; });
  });
})();
