// Live parts, times that count on, and "/" for the search field. Every page works without this file.
"use strict";
(() => {
  const seconds = Number(document.body.dataset.liveSeconds);
  const button = document.querySelector("[data-toggle]");
  const slowest = 60;
  let wait = seconds, off = false, timer = 0;

  const span = (length) => {
    const s = Math.floor(Math.abs(length));
    if (s < 60) return `${s} s`;
    if (s < 3600) return `${Math.floor(s / 60)} min`;
    if (s >= 86400) return `${Math.floor(s / 86400)} d`;
    const minutes = Math.floor((s % 3600) / 60);
    return `${Math.floor(s / 3600)} h${minutes && s < 36000 ? ` ${minutes} min` : ""}`;
  };
  const count = () => {
    for (const time of document.querySelectorAll("time[data-t]")) {
      const text = span((Date.now() - Date.parse(time.dateTime)) / 1000) + (time.dataset.t === "ago" ? " ago" : "");
      if (time.textContent !== text) time.textContent = text;
    }
  };
  // A part that has the focus or a selection is left alone until the next time.
  const isInUse = (part) => {
    const chosen = getSelection();
    return part.contains(document.activeElement) || (chosen.type === "Range" && chosen.containsNode(part, true));
  };
  const replace = (fresh) => {
    if (fresh.title !== document.title) document.querySelector(".notice")?.remove(); // it is about the state before
    document.title = fresh.title;
    for (const part of document.querySelectorAll("[data-live]")) {
      const next = fresh.getElementById(part.id);
      if (!next || isInUse(part)) continue;
      if (next.className !== part.className) part.className = next.className;
      if (next.innerHTML !== part.innerHTML) part.replaceChildren(...next.childNodes);
    }
  };
  const read = async () => {
    clearTimeout(timer);
    if (off || document.hidden) return;
    try {
      const answer = await fetch(location.href, { redirect: "manual", cache: "no-store" });
      if (answer.type === "opaqueredirect") return location.reload(); // the session has ended
      if (!answer.ok) throw new Error(answer.statusText);
      replace(new DOMParser().parseFromString(await answer.text(), "text/html"));
      wait = seconds;
    } catch {
      wait = Math.min(wait * 2, slowest);
    }
    timer = setTimeout(read, wait * 1000);
  };

  const nav = document.querySelector(".top nav");
  const current = nav?.querySelector("[aria-current]");
  if (current) nav.scrollLeft = current.offsetLeft - nav.offsetLeft - (nav.clientWidth - current.offsetWidth) / 2;

  setInterval(count, 10000);
  if (seconds) {
    timer = setTimeout(read, wait * 1000);
    document.addEventListener("visibilitychange", read);
    if (button) {
      button.hidden = false;
      button.addEventListener("click", () => {
        off = !off;
        button.textContent = off ? "Live: off" : "Live: on";
        read();
      });
    }
  }
  document.addEventListener("keydown", (event) => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement?.tagName ?? "");
    if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    document.querySelector(".find input")?.focus();
  });
})();
