"use strict";
// Pages are whole without this. What it adds: replies that grow as they come, and a list that is
// up to date. Text goes in as text; the HTML that is fetched is what the server makes of records
// for every page.

const list = document.getElementById("records");
const state = document.getElementById("status");

function fetched(html) {
  return new DOMParser().parseFromString(html, "text/html").body;
}

// -- a conversation ------------------------------------------------------------------------

// What the server last said of each record, by id.
const known = new Map();
const USED = "a, button, input, summary, [tabindex]";

function shown() {
  return [...list.querySelectorAll("article[data-record]")];
}

// The record before the first of the page.
function beginning() {
  return list.dataset.since ?? "";
}

// The record behind which something may still change: outputs come behind calls that look whole,
// and a reply that was cut off may go on.
function settled() {
  const articles = shown();
  const growing = articles.findIndex((one) => one.matches(".growing"));
  const at = Math.min(growing < 0 ? articles.length : growing, articles.length - 8) - 1;
  return at < 0 ? beginning() : articles[at].dataset.record;
}

// What the server makes visible, one letter for one, until it is put again as the server has it.
const UNSEEN = new RegExp(
  "[\\0-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069]"
  + "|\\r(?!\\n)", "g");

function visible(text) {
  return text.replace(UNSEEN, (one) => {
    const code = one.charCodeAt(0);
    if (code < 0x20) return String.fromCharCode(0x2400 + code);
    return code === 0x7f ? "\u2421" : "\ufffd";
  });
}

function atEnd() {
  return innerHeight + scrollY > document.documentElement.scrollHeight - 120;
}

function replace(old, made) {
  // What somebody is about to use stays.
  if (old.querySelector(".menu[open]")) return false;
  const open = [...old.querySelectorAll("details")].map((one) => one.open);
  const focus = [...old.querySelectorAll(USED)].indexOf(document.activeElement);
  [...made.querySelectorAll("details")].forEach((one, at) => { if (open[at]) one.open = true; });
  old.replaceWith(made);
  if (focus >= 0) made.querySelectorAll(USED)[focus]?.focus();
  return true;
}

function put(one) {
  const html = one.outerHTML;
  if (known.get(one.id) === html) return;
  const old = document.getElementById(one.id);
  if (!old) list.append(one);
  else if (!replace(old, one)) return;
  known.set(one.id, html);
}

let asking = false;
let again = false;

async function refresh() {
  if (asking) { again = true; return; }
  asking = true;
  try {
    let after = settled();
    do {
      again = false;
      const page = new URL(list.dataset.records, location.href);
      if (after) page.searchParams.set("after", after);
      const first = shown()[0];
      const answer = await fetch(page);
      if (!answer.ok) break;
      const follow = atEnd();
      const made = [...fetched(await answer.text()).querySelectorAll("article[data-record]")];
      const whole = after === beginning();
      if (whole && first && made.length && made[0].id !== first.id) { location.reload(); return; }
      made.forEach(put);
      const running = answer.headers.get("X-Running") === "1";
      if (!running && state.dataset.running) state.textContent = "The reply has ended.";
      if (running) state.textContent = "A reply is being written.";
      state.dataset.running = running ? "1" : "";
      if (follow) scrollTo(0, document.documentElement.scrollHeight);
      const full = made.length >= Number(list.dataset.most);
      after = full ? made.at(-1).dataset.record : settled();
      again = again || full;
    } while (again);
  } finally {
    asking = false;
  }
}

function grow(told) {
  const article = document.getElementById("r" + told.record);
  const text = article && article.classList.contains("growing") && article.querySelector(".text");
  if (!text) { refresh(); return; }
  const length = Number(text.dataset.length);
  // What the page was made with may hold more than the event is about.
  const there = length - told.start;
  const letters = Array.from(told.text);
  if (there < 0) { refresh(); return; }
  if (there >= letters.length) return;
  const follow = atEnd();
  text.append(visible(letters.slice(there).join("")));
  text.dataset.length = told.start + letters.length;
  known.delete(article.id);
  if (follow) scrollTo(0, document.documentElement.scrollHeight);
}

function watch() {
  if (state.textContent) state.dataset.running = "1";
  let source = null;
  let ended = false;
  let after = list.dataset.after;
  const close = () => {
    source?.close();
    source = null;
  };
  const open = () => {
    if (ended || source || document.hidden) return;
    const place = new URL(list.dataset.events, location.href);
    place.searchParams.set("after", after);
    source = new EventSource(place);
    listen(source, (event) => { after = event.lastEventId || after; }, () => {
      ended = true;
      close();
    });
  };
  // A browser has six connections to a server, for all of its pages: one that nobody sees needs
  // none.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) { close(); return; }
    if (ended || source) return;
    open();
    refresh().then(settle);
  });
  open();
}

function listen(source, seen, end) {
  source.addEventListener("text", (event) => {
    seen(event);
    grow(JSON.parse(event.data));
  });
  source.addEventListener("change", (event) => {
    seen(event);
    refresh().then(() => {
      // Its figures and its notices stand elsewhere on the page.
      if (JSON.parse(event.data).over) settle();
    });
  });
  source.addEventListener("reload", () => { end(); location.reload(); });
  source.addEventListener("gone", () => {
    end();
    state.textContent = "This conversation cannot be followed any more; load the page again.";
  });
}

async function settle() {
  const answer = await fetch(location.href);
  if (!answer.ok) return;
  const made = fetched(await answer.text());
  for (const selector of ["main > .facts", "main > .problem", "main > .notice"]) {
    const old = document.querySelector(selector);
    const news = made.querySelector(selector);
    // What has not changed stays: somebody may be about to use it.
    if (old && news) { if (old.outerHTML !== news.outerHTML) old.replaceWith(news); }
    else if (old) old.remove();
    else if (news) list.before(news);
  }
}

// -- the list of conversations -------------------------------------------------------------

const fresh = document.getElementById("fresh");

async function renew() {
  if (document.hidden || fresh.contains(document.activeElement)) return;
  const answer = await fetch(location.href).catch(() => null);
  const made = answer && answer.ok && fetched(await answer.text()).querySelector("#fresh");
  if (made && made.innerHTML !== fresh.innerHTML) fresh.replaceChildren(...made.childNodes);
}

if (list && list.dataset.events) watch();
if (fresh) setInterval(renew, 5000);
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  for (const menu of document.querySelectorAll(".menu[open]")) {
    menu.open = false;
    menu.querySelector("summary").focus();
  }
});
