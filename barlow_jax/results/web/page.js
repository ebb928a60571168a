// What a page does by itself: the theme, the sliders of pictures, and the first drawing of its curves.
"use strict";

const pictures = {
  // Shows the picture of a series at the place of its slider.
  show(figure) {
    const images = figure.querySelectorAll("img"), at = +figure.querySelector("input").value;
    images.forEach((image, place) => { image.hidden = place !== at; });
    figure.querySelector("output").textContent = `step ${images[at].dataset.step}`;
  },
};

(() => {
  const root = document.documentElement, button = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
  const name = () => { button.textContent = isDark() ? "Light" : "Dark"; };

  button.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; name(); curves.draw(); });
  dark.addEventListener("change", () => { name(); curves.draw(); });
  document.addEventListener("input", event => {
    const figure = event.target.closest(".frames");
    if (figure) pictures.show(figure);
  });
  new ResizeObserver(() => curves.resized()).observe(document.querySelector("main"));
  name();
  curves.draw(JSON.parse(document.getElementById("data").textContent));
})();
