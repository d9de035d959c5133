"use strict";
(() => {
  const state = document.getElementById("live");
  const button = document.getElementById("pause");
  let tag = document.body.dataset.tag;
  let timer = 0;
  let paused = false;

  function say(text) {
    if (state.textContent !== text) state.textContent = text;
  }

  function show(text) {
    const page = new DOMParser().parseFromString(text, "text/html");
    const open = [...document.querySelectorAll("details[open]")].map((element) => element.id);
    const focus = document.activeElement;
    const place = focus ? focus.id || focus.getAttribute("aria-label") : null;
    for (const name of ["header", "nav", "main"]) {
      document.querySelector(name).replaceWith(document.adoptNode(page.querySelector(name)));
    }
    document.title = page.title;
    for (const id of open) {
      const element = document.getElementById(id);
      if (element) element.open = true;
    }
    if (place && document.activeElement === document.body) {
      const again = document.getElementById(place) || document.querySelector(`[aria-label="${CSS.escape(place)}"]`);
      if (again) again.focus({ preventScroll: true });
    }
    tag = page.body.dataset.tag;
  }

  async function look() {
    let next = 2000;
    try {
      const answer = await fetch(location.pathname, { headers: { "If-None-Match": tag }, cache: "no-store" });
      if (answer.status === 200) {
        show(await answer.text());
        say(`Refreshed at ${new Date().toLocaleTimeString()}.`);
      } else if (answer.status === 304) {
        say("Up to date; refreshed when the run writes something.");
      } else {
        say(`The server answered ${answer.status}; the page shows what was known before.`);
      }
    } catch {
      say("The server does not answer; the page shows what was known before.");
      next = 10000;
    }
    if (!paused) timer = setTimeout(look, next);
  }

  button.hidden = false;
  button.addEventListener("click", () => {
    paused = !paused;
    button.textContent = paused ? "Go on" : "Pause";
    clearTimeout(timer);
    if (paused) say("Paused.");
    else look();
  });
  timer = setTimeout(look, 2000);
})();
