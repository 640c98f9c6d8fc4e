/* Keeps a page fresh: it hears what happens in a run and fetches the parts that depend on it, whole.

   The server says in each part (data-on) which events it depends on. Nothing is added to what is shown, so nothing is shown
   twice; what data and models wrote comes as escaped text of the server's own templates, and a parser that runs no script
   makes nodes of it. Without this script the page reads the same, and is fetched anew every few seconds. */
"use strict";

(() => {
  const main = document.querySelector("main[data-stream]");
  if (!main || !window.EventSource) return;

  const PAUSE = 1000; // ms between two fetches
  const SPEECH = 10000; // ms between two sentences for who cannot see the page
  const link = document.getElementById("link");
  const said = document.getElementById("said");
  let last = main.dataset.from || "";
  let source = null;
  let dirty = new Set();
  let timer = 0;
  let fetched = 0;
  let spoken = 0;
  let closing = 0;

  const parts = () => [...main.querySelectorAll("section[data-on]")];
  const say = (element, text) => {
    if (element && element.textContent !== text) element.textContent = text;
  };

  function kinds() {
    return new Set(parts().flatMap((part) => part.dataset.on.split(" ")));
  }

  function mark(kind) {
    for (const part of parts()) {
      if (kind === "reset" || part.dataset.on.split(" ").includes(kind)) dirty.add(part.id);
    }
    if (dirty.size && !timer) timer = setTimeout(renew, Math.max(0, fetched + PAUSE - Date.now()));
  }

  async function renew() {
    const names = [...dirty];
    dirty = new Set();
    fetched = Date.now();
    try {
      const answer = await fetch(`${main.dataset.parts}?names=${names.join(",")}`);
      if (!answer.ok) throw new Error(answer.statusText);
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const part of fresh.querySelectorAll("section[id]")) exchange(part);
      speak();
    } catch (error) {
      names.forEach((name) => dirty.add(name));
      say(link, `not reached: what you see is of ${new Date().toLocaleTimeString()}`);
    }
    timer = dirty.size ? setTimeout(renew, PAUSE) : 0;
  }

  /* Put a fresh part in the place of the old one; what was opened, scrolled to or focused there stays so. */
  function exchange(fresh) {
    const old = document.getElementById(fresh.id);
    if (!old) return;
    for (const opened of old.querySelectorAll("details[open][id]")) {
      const same = fresh.querySelector(`#${CSS.escape(opened.id)}`);
      if (same) same.open = true;
    }
    const scrolled = [...old.querySelectorAll(".scroll")].map((place) => place.scrollLeft);
    const focus = [...old.querySelectorAll("a, button, summary, input, select, [tabindex]")].indexOf(document.activeElement);
    old.replaceWith(document.adoptNode(fresh));
    [...fresh.querySelectorAll(".scroll")].forEach((place, index) => { place.scrollLeft = scrolled[index] || 0; });
    if (focus >= 0) {
      const same = [...fresh.querySelectorAll("a, button, summary, input, select, [tabindex]")][focus];
      if (same) same.focus({ preventScroll: true });
    }
  }

  function speak() {
    const title = document.getElementById("now-title");
    if (!title || Date.now() - spoken < SPEECH) return;
    spoken = Date.now();
    const figures = document.querySelector("#now .figures");
    say(said, [title, figures].filter(Boolean).map((element) => element.textContent.trim()).join(", "));
  }

  function open() {
    const address = last ? `${main.dataset.stream}?from=${encodeURIComponent(last)}` : main.dataset.stream;
    source = new EventSource(address);
    source.onopen = () => say(link, "live");
    source.onerror = () => say(link, "connection lost; trying again");
    for (const kind of new Set([...kinds(), "reset", "heartbeat"])) {
      source.addEventListener(kind, (event) => {
        if (event.lastEventId) last = event.lastEventId;
        say(link, "live");
        if (kind === "state") {
          const state = JSON.parse(event.data).state;
          if (state === main.dataset.state) return; // it stands as the page says
          main.dataset.state = state;
        }
        mark(kind);
      });
    }
  }

  /* A browser keeps six connections to a host: a page that nobody looks at gives its own back. */
  document.addEventListener("visibilitychange", () => {
    clearTimeout(closing);
    if (document.hidden) {
      closing = setTimeout(() => { if (source) source.close(); source = null; say(link, "paused"); }, 5000);
    } else if (!source) {
      open();
      if (!last) mark("reset");
    }
  });
  window.addEventListener("pagehide", () => { if (source) source.close(); source = null; });
  window.addEventListener("pageshow", (event) => { if (event.persisted && !source) { mark("reset"); open(); } });
  open();
})();
