"use strict";
for (const slider of document.querySelectorAll(".control input")) {
  const slices = slider.dataset.slices.split(" ");
  const whole = slider.closest(".slices");
  const films = whole.querySelectorAll(".film");
  const said = whole.querySelector("output");
  const show = () => {
    const place = Number(slider.value);
    for (const film of films) film.style.transform = `translateY(${-100 * place / slices.length}%)`;
    said.value = `${Number(slices[place]) + 1} of ${slider.dataset.of}`;
    slider.setAttribute("aria-valuetext", `slice ${said.value}`);
  };
  slider.addEventListener("input", show);
  show(); // a reload may have kept another place
}

const button = document.getElementById("theme");
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
const name = () => { button.textContent = isDark() ? "Light page" : "Dark page"; };
button.addEventListener("click", () => {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  name();
});
dark.addEventListener("change", name);
button.hidden = false;
name();

// What is folded away on the screen is wanted on paper, all but the lists of hashes.
let closed = [];
window.addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("section:not(#methods) details:not([open])")];
  for (const part of closed) part.open = true;
});
window.addEventListener("afterprint", () => { for (const part of closed) part.open = false; });
