// What the page does beyond its forms: drop and paste, a card as each picture is done, keys.
"use strict";
(() => {
  const by = (id) => document.getElementById(id);
  for (const one of document.querySelectorAll(".can-drop, .has-keys")) one.hidden = false;
  for (const one of document.querySelectorAll(".cannot-drop")) one.hidden = true;

  // The slider of a heatmap.
  document.addEventListener("input", (event) => {
    if (!event.target.matches("input.cut")) return;
    const near = event.target.closest("figure, article, .two > div");
    const look = near.querySelector(".look");
    look.style.setProperty("--cut", event.target.value + "%");
  });

  // Keys, where nobody is writing.
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, textarea, select")) return;
    const key = event.key.toLowerCase();
    const next = { arrowleft: "a[rel=prev]", arrowright: "a[rel=next]" }[key];
    const found = [...document.querySelectorAll("[data-key]")].find((one) => one.dataset.key === key)
      || (next && document.querySelector("main nav " + next));
    if (found) { event.preventDefault(); found.click(); }
  });
  for (const one of document.querySelectorAll("select[data-send]")) {
    one.addEventListener("change", () => one.form.submit());
  }

  const form = by("check");
  if (!form) return;
  const files = by("files"), url = by("url"), cards = by("cards");
  const AT_A_TIME = 3, DRAWN = 3; // heatmaps take long: of more pictures only those that are asked for
  const waiting = [];
  let all = 0, done = 0, running = 0;

  const pause = (seconds) => new Promise((wake) => setTimeout(wake, 1000 * seconds));
  function note(card, text) { card.querySelector("p").textContent = text; }
  function tell() {
    by("outcome").hidden = all === 0;
    by("work").hidden = done === all;
    by("progress").max = all;
    by("progress").value = done;
    by("status").textContent = done < all ? `${done} of ${all} pictures checked` : all === 1 ? "1 picture checked" : `${all} pictures checked`;
    by("after").hidden = done < all || !all;
  }
  function add(what, name) {
    const card = document.createElement("article");
    card.className = "card waiting";
    const head = document.createElement("h2"), bdi = document.createElement("bdi"), line = document.createElement("p");
    bdi.textContent = name;
    head.append(bdi);
    line.className = "soft";
    line.textContent = "waiting";
    card.append(head, line);
    cards.append(card);
    all += 1;
    waiting.push({ what, name, card });
    tell();
    while (running < AT_A_TIME && waiting.length) work();
  }
  function problem(card, name, said) {
    card.className = "card problem";
    card.dataset.verdict = "error";
    card.querySelector("p").remove();
    const box = document.createElement("div"), line = document.createElement("p");
    box.className = "note bad";
    box.setAttribute("role", "alert");
    line.textContent = said;
    box.append(line);
    card.append(box);
  }
  // Sends a picture; where many wait, again and again.
  async function ask(path, { what, name }, say) {
    for (;;) {
      const body = new FormData();
      if (typeof what === "string") body.append("url", what);
      else body.append("file", what, name);
      const answer = await fetch(path, { method: "POST", body, headers: { "X-Ganscope": "card" } });
      if (answer.status === 429) {
        say("many pictures are waiting; this one is sent again soon");
        await pause(Math.min(60, +answer.headers.get("Retry-After") || 5));
        continue;
      }
      if (answer.redirected || answer.status === 401) location.assign("/login");
      return answer;
    }
  }
  async function work() {
    running += 1;
    const one = waiting.shift(), { what, name, card } = one;
    try {
      if (what.size > +form.dataset.most) throw new Error(`Too large: ${form.dataset.limit} at most.`);
      if (what.size === 0) throw new Error("The file is empty.");
      note(card, "looking at it");
      const answer = await ask("/check", one, (text) => note(card, text));
      const holder = document.createElement("template");
      holder.innerHTML = await answer.text(); // from our own server, which has escaped all of a stranger's
      const found = holder.content.querySelector("article");
      if (!found) throw new Error("The server gave no answer that can be shown.");
      if (found.matches(".problem")) throw new Error(found.textContent.trim());
      card.replaceWith(found);
      const button = found.querySelector(".draw");
      if (button) {
        button.addEventListener("click", () => draw(found, one));
        if (all <= DRAWN) draw(found, one);
      }
    } catch (error) {
      problem(card, name, error instanceof TypeError ? "The server cannot be reached." : error.message);
    } finally {
      running -= 1;
      done += 1;
      tell();
      if (waiting.length) work();
    }
  }
  async function draw(card, one) {
    const line = card.querySelector(".ask");
    line.textContent = "drawing the heatmap";
    line.className = "ask soft";
    try {
      const found = await (await ask("/heatmap", one, (text) => { line.textContent = text; })).json();
      if (!found.heatmap) throw new Error(found.error || "there is none");
      const image = card.querySelector(".heat");
      image.src = found.heatmap;
      for (const part of [image, card.querySelector(".edge"), card.querySelector(".drawn")]) part.hidden = false;
      line.remove();
    } catch (error) {
      line.textContent = "The heatmap cannot be drawn: " + error.message;
    }
  }
  function take(list) {
    for (const file of list) add(file, file.name || "picture");
  }
  function send(event) {
    event.preventDefault();
    if (!files.files.length && !(url && url.value)) { by("outcome").hidden = false; by("status").textContent = "Choose a picture first."; return; }
    take(files.files);
    if (url && url.value) add(url.value, url.value);
    files.value = "";
    if (url) url.value = "";
  }
  form.addEventListener("submit", send);
  files.addEventListener("change", () => { take(files.files); files.value = ""; });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData && event.clipboardData.files.length) { event.preventDefault(); take(event.clipboardData.files); }
  });
  for (const kind of ["dragenter", "dragover"]) document.addEventListener(kind, (event) => { event.preventDefault(); form.classList.add("over"); });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) form.classList.remove("over"); });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    form.classList.remove("over");
    const link = event.dataTransfer.getData("text/uri-list").split("\n")[0].trim();
    if (event.dataTransfer.files.length) take(event.dataTransfer.files);
    else if (link && url) add(link, link);
  });
  by("clear").addEventListener("click", () => { cards.replaceChildren(); all = done = 0; tell(); files.focus(); });
  by("download").addEventListener("click", async () => {
    const counts = {};
    let rows = "";
    for (const card of cards.querySelectorAll("article")) {
      const row = card.querySelector("template.report-row");
      if (!row) continue;
      counts[card.dataset.verdict] = (counts[card.dataset.verdict] || 0) + 1;
      rows += row.innerHTML;
    }
    const frame = await (await fetch("/report?" + new URLSearchParams(counts))).text();
    const page = frame.replace("<tbody>", () => "<tbody>" + rows);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([page], { type: "text/html" }));
    link.download = "ganscope-report.html";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  });
})();
