// Asks the address of the page for what is new, and changes only the sections that are: what was unfolded or slid stays.
"use strict";

(() => {
  const EVERY = 5000, state = document.getElementById("live"), shown = {};
  let stamp = "";

  const kept = section => ({
    open: [...section.querySelectorAll("details")].map(one => one.open),
    at: Object.fromEntries([...section.querySelectorAll(".frames")].filter(one => one.querySelector("input")).map(one => {
      const input = one.querySelector("input");
      return [one.dataset.key, input.value === input.max ? null : one.querySelector("img:not([hidden])").dataset.step];
    })),
  });

  function restored(section, { open, at }) {
    section.querySelectorAll("details").forEach((one, place) => { one.open = Boolean(open[place]); });
    for (const figure of section.querySelectorAll(".frames")) {
      const place = [...figure.querySelectorAll("img")].findIndex(image => image.dataset.step === at[figure.dataset.key]);
      if (place < 0) continue;
      figure.querySelector("input").value = place;
      pictures.show(figure);
    }
  }

  function fill(found) {
    for (const [name, html] of Object.entries(found.sections)) {
      if (shown[name] === html) continue;
      const section = document.getElementById(name), before = kept(section);
      shown[name] = html;
      section.hidden = html === "";
      for (const link of document.querySelectorAll(`nav a[href="#${name}"]`)) link.hidden = html === "";
      section.querySelector(".content").innerHTML = html;  // of our own server, escaped there
      restored(section, before);
    }
    curves.draw(found.curves);
  }

  async function ask() {
    try {
      const answer = await fetch(`data?${stamp}`);
      if (answer.status === 200) {
        const found = await answer.json();
        stamp = found.stamp;
        fill(found);
      }
      if (!answer.ok) throw new Error(await answer.text());
      state.textContent = `live, looked at ${new Date().toLocaleTimeString()}`;
    } catch (error) {
      state.textContent = `no answer: ${error.message}`;
    }
    setTimeout(ask, EVERY);
  }

  ask();
})();
