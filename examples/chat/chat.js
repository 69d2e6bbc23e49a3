// The page: what is shown, and what the person does. Text from others only ever becomes `textContent`.

import { Connection, Refused } from "./connection.js";

const REPLACED = 4000; // close code: the same session goes on somewhere else
const SHOWN = 500; // messages in the page; older ones are taken out
const TYPING_EVERY = 2000; // milliseconds between two notes that we are typing
const TYPING_LASTS = 4000; // ... and how long one from somebody else is believed
const LATE_AFTER = 400; // until then a message that is on its way looks as if it had arrived
const SAME_GROUP = 5 * 60_000; // messages of one person within this time stand together

const $ = (id) => document.getElementById(id);
const clock = new Intl.DateTimeFormat(undefined, { hour: "numeric", minute: "2-digit" });

let me = "";
let room = "";
let connection = null;
let last = null; // id of the newest message that we have; the server goes on after it
let typingSent = -Infinity;
let atEnd = true; // the newest message is in sight
const unsent = new Map(); // ref -> {text, element}: said by us, not yet come back from the server
const people = new Set();
const missing = new Set(); // were here before the connection was lost; not news when they are back
const typists = new Map(); // name -> timer

// The door

function slug(value) {
  return value.toLowerCase().trim().replace(/^#/, "").replace(/[^a-z0-9_-]+/g, "-").replace(/^-+|-+$/g, "").slice(0, 32);
}

function roomFromAddress() {
  const path = location.pathname.match(/^\/room\/([^/]+)/);
  const asked = path ? path[1] : new URLSearchParams(location.search).get("room");
  try {
    return slug(decodeURIComponent(asked ?? ""));
  } catch {
    return "";
  }
}

function showDoor(problem = "") {
  document.title = "Roost";
  $("chat").hidden = true;
  $("door").hidden = false;
  $("name").value = me || localStorage.getItem("name") || "";
  $("room").value = room || roomFromAddress() || "lobby";
  $("problem").textContent = problem;
  $("name").ariaInvalid = String(problem !== "");
  $("name").focus();
}

$("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = $("name").value.trim();
  if (!name) return showDoor("Please choose a name.");
  enter(name, slug($("room").value) || "lobby");
});

/** The key by which the server knows this tab again after a lost connection. */
function session() {
  if (!sessionStorage.getItem("session")) sessionStorage.setItem("session", crypto.getRandomValues(new Uint32Array(4)).join("-"));
  return sessionStorage.getItem("session");
}

function enter(name, chosen) {
  me = name;
  room = chosen;
  localStorage.setItem("name", name);
  sessionStorage.setItem("inside", JSON.stringify({ name, room }));
  history.replaceState(null, "", `/room/${room}`);
  $("title").textContent = `#${room}`;
  document.title = `#${room} · Roost`;
  $("door").hidden = true;
  $("chat").hidden = false;
  openSide(false);
  forgetRoom();
  connection = new Connection({
    address,
    opened: () => connection.send({ type: "join", session: session(), after: last }),
    received,
    changed: showState,
    isFinal: (event) => event.code === REPLACED,
  });
  connection.start();
  $("text").focus();
}

function leave(problem) {
  connection?.send({ type: "leave" });
  connection?.stop();
  connection = null;
  sessionStorage.removeItem("inside");
  showDoor(problem);
}

function forgetRoom() {
  last = null;
  for (const things of [unsent, people, missing]) things.clear();
  for (const name of [...typists.keys()]) stopTyping(name);
  $("posts").replaceChildren();
  showPeople();
}

/** Where to connect. Each connection has a fresh token: the server may have been restarted, and with a new key. */
async function address(signal) {
  const answer = await fetch(`/token?${new URLSearchParams({ name: me })}`, { signal, cache: "no-store" });
  const { name, token, error } = await answer.json();
  if (answer.status === 400) throw new Refused(error);
  if (!answer.ok) throw new Error(`/token answered ${answer.status}`);
  me = name;
  const url = new URL(`/chat/${room}?${new URLSearchParams({ token })}`, location.href);
  url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  return url;
}

// The connection's state

const SAID = { online: "Connected.", waiting: "Connection lost, trying again.", offline: "Offline." };

function showState({ name, latency, seconds, reason }) {
  if (reason instanceof Refused) return leave(reason.message);
  if (reason) addNotice("You are in this room in another tab now.");
  const label = {
    connecting: "Connecting…",
    online: "Online",
    waiting: `Reconnecting in ${seconds} s`,
    offline: "Offline",
  }[name];
  $("state").textContent = latency ? `${label} · ${latency} ms` : label;
  if ($("state").dataset.state !== name && SAID[name]) $("announce").textContent = SAID[name];
  $("state").dataset.state = name;
  $("retry").hidden = name !== "waiting" && name !== "offline";
  $("retry").textContent = name === "offline" ? "Use this tab" : "Retry";
}

$("retry").addEventListener("click", () => {
  if ($("state").dataset.state === "offline") connection.start();
  else connection.wake();
});

// What the server says

function received(event) {
  switch (event.type) {
    case "welcome":
      return welcomed(event);
    case "message":
      stopTyping(event.user);
      return showPost(event);
    case "join":
      return joined(event.user);
    case "leave":
      return left(event.user);
    case "typing":
      return startTyping(event.user);
    case "error":
      return failed(event);
  }
}

function welcomed({ you, users, history, resumed }) {
  me = you;
  for (const name of people) if (!users.includes(name)) missing.add(name);
  people.clear();
  for (const name of users) people.add(name);
  showPeople();
  if (!resumed && last) addNotice("You were away; something may be missing here.");
  $("log").ariaBusy = "true"; // a screen reader does not read the whole history aloud
  for (const post of history) showPost(post);
  $("log").ariaBusy = "false";
  scrollDown();
  connection.ready();
  for (const [ref, { text }] of unsent) connection.send({ type: "message", text, ref });
}

function joined(name) {
  people.add(name);
  showPeople();
  if (!missing.delete(name) && !takeBackNotice(`${name} left`)) addNotice(`${name} joined`);
}

function left(name) {
  people.delete(name);
  stopTyping(name);
  showPeople();
  if (!takeBackNotice(`${name} joined`)) addNotice(`${name} left`);
}

function failed({ code, text, ref }) {
  if (code === "name_taken") return leave(text);
  const refused = unsent.get(ref);
  if (!refused) return addNotice(text);
  unsent.delete(ref);
  refused.element.classList.replace("pending", "failed");
  refused.element.querySelector(".note").textContent = `Not sent. ${text}`;
}

// Messages

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

/** The same name has the same colour everywhere. */
function hue(name) {
  let sum = 7;
  for (const char of name.toLowerCase()) sum = (sum * 31 + char.codePointAt(0)) % 9973;
  return Math.round(sum * 137.508) % 360; // the golden angle: neighbours come out far apart
}

function avatar(name) {
  const made = element("span", "avatar", [...name][0].toUpperCase());
  made.ariaHidden = "true";
  made.style.setProperty("--hue", hue(name));
  return made;
}

function makePost({ user, text, at }) {
  const item = element("li", "post");
  item.dataset.user = user;
  item.dataset.at = at;
  item.classList.toggle("own", user === me);
  const head = element("p", "head");
  const who = element("span", "who", user);
  who.style.setProperty("--hue", hue(user));
  const when = element("time", "when", clock.format(at));
  when.dateTime = new Date(at).toISOString();
  head.append(who, " ", when);
  const body = element("p", "bubble", text);
  body.dir = "auto";
  const said = element("div", "said");
  said.append(head, body, element("p", "note"));
  item.append(avatar(user), said);
  return item;
}

function showPost(post) {
  last = post.id;
  const ours = post.user === me ? unsent.get(post.ref) : undefined;
  const item = makePost(post);
  if (ours) {
    unsent.delete(post.ref);
    ours.element.remove();
  }
  append(item, Boolean(ours));
  if (document.hidden) document.title = `• #${room} · Roost`;
}

function append(item, follow = false) {
  const before = item.classList.contains("pending") ? $("posts").lastElementChild : lastSettled();
  if (before) before.after(item);
  else $("posts").prepend(item);
  group(item);
  if (item.nextElementSibling) group(item.nextElementSibling);
  if ($("posts").childElementCount > SHOWN) $("posts").firstElementChild.remove();
  if (follow || atEnd) scrollDown();
  else $("newer").hidden = false;
}

/** What came from the server stands above what still has to get there. */
function lastSettled() {
  let item = $("posts").lastElementChild;
  while (item?.classList.contains("pending")) item = item.previousElementSibling;
  return item;
}

function group(item) {
  const before = item.previousElementSibling;
  const follows = before?.dataset.user === item.dataset.user && item.dataset.at - before?.dataset.at < SAME_GROUP;
  item.classList.toggle("follows", Boolean(follows));
}

function addNotice(text) {
  append(element("li", "notice", text));
}

/** Somebody who came and went, or reloaded the page, is no news: remove the notice that says so. */
function takeBackNotice(text) {
  const before = lastSettled();
  if (!before?.classList.contains("notice") || before.textContent !== text) return false;
  before.remove();
  return true;
}

function scrollDown() {
  $("log").scrollTop = $("log").scrollHeight;
  $("newer").hidden = true;
}

$("newer").addEventListener("click", scrollDown);
$("log").addEventListener("scroll", () => {
  const { scrollHeight, scrollTop, clientHeight } = $("log");
  atEnd = scrollHeight - scrollTop - clientHeight < 80;
  if (atEnd) $("newer").hidden = true;
});

// A phone's keyboard takes half of the room: what was in sight stays in sight.
new ResizeObserver(() => atEnd && scrollDown()).observe($("log"));

document.addEventListener("visibilitychange", () => {
  if (!document.hidden && connection) document.title = `#${room} · Roost`;
});

// Writing

function say(text) {
  const ref = crypto.getRandomValues(new Uint32Array(3)).join("-");
  const item = makePost({ user: me, text, at: Date.now() });
  item.classList.add("pending");
  item.querySelector(".note").textContent = "Waiting to be sent";
  setTimeout(() => item.classList.add("late"), LATE_AFTER);
  unsent.set(ref, { text, element: item });
  append(item, true);
  if ($("state").dataset.state === "online") connection.send({ type: "message", text, ref });
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (text) say(text);
  $("text").value = "";
  typingSent = -Infinity;
  fitText();
  $("text").focus();
});

$("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("composer").requestSubmit();
});

$("text").addEventListener("input", () => {
  fitText();
  const now = performance.now();
  if (!$("text").value.trim() || now - typingSent < TYPING_EVERY) return;
  if ($("state").dataset.state === "online" && connection.send({ type: "typing" })) typingSent = now;
});

function fitText() {
  $("text").style.height = "auto";
  const borders = $("text").offsetHeight - $("text").clientHeight;
  $("text").style.height = `${$("text").scrollHeight + borders}px`;
}

// People

function showPeople() {
  const names = [...people].sort((a, b) => (b === me) - (a === me) || a.localeCompare(b));
  $("people").replaceChildren(
    ...names.map((name) => {
      const item = element("li", "person");
      item.append(avatar(name), element("span", "name", name));
      if (name === me) item.append(element("span", "you", "you"));
      return item;
    }),
  );
  $("count").textContent = $("badge").textContent = people.size || "";
}

function startTyping(name) {
  clearTimeout(typists.get(name));
  typists.set(name, setTimeout(stopTyping, TYPING_LASTS, name));
  showTyping();
}

function stopTyping(name) {
  clearTimeout(typists.get(name));
  typists.delete(name);
  showTyping();
}

function showTyping() {
  const [first, second, ...more] = typists.keys();
  let text = "";
  if (more.length) text = "Several people are typing";
  else if (second) text = `${first} and ${second} are typing`;
  else if (first) text = `${first} is typing`;
  $("typing").textContent = text;
}

// The side panel, which is a drawer on a phone

function openSide(open) {
  $("chat").classList.toggle("side-open", open);
  $("toggle").ariaExpanded = String(open);
}

$("toggle").addEventListener("click", () => openSide(!$("chat").classList.contains("side-open")));
$("scrim").addEventListener("click", () => openSide(false));
addEventListener("keydown", (event) => event.key === "Escape" && openSide(false));
$("leave").addEventListener("click", () => leave());
$("share").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(location.href);
    $("share").textContent = $("announce").textContent = "Copied";
  } catch {
    $("share").textContent = "Copy it from the address bar"; // the clipboard is only for pages over HTTPS
  }
  setTimeout(() => ($("share").textContent = "Copy link to room"), 2500);
});

// A reload does not leave the room.
const inside = JSON.parse(sessionStorage.getItem("inside") ?? "null");
if (inside && (roomFromAddress() || inside.room) === inside.room) enter(inside.name, inside.room);
else showDoor();
