// Small conveniences of every page: the theme, copying, confirming, sortable times in the reader's own zone.

const YEAR_SECONDS = 365 * 24 * 3600;

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function switchTheme() {
  const theme = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  // biome-ignore lint/suspicious/noDocumentCookie: the server reads it, so that no page flashes in the other theme
  document.cookie = `tunewright_theme=${theme}; path=/; max-age=${YEAR_SECONDS}; samesite=lax`;
  document.dispatchEvent(new Event("themechanged"));
}

async function copy(button) {
  const source = document.getElementById(button.dataset.copy);
  await navigator.clipboard.writeText(source.textContent.trim());
  const label = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => {
    button.textContent = label;
  }, 1500);
}

function localTimes(root) {
  for (const time of root.querySelectorAll("time[data-local]")) {
    const moment = new Date(time.dateTime);
    time.textContent =
      time.dataset.local === "clock" ? moment.toLocaleTimeString() : moment.toLocaleString();
  }
}

// What a plan says of its form's fields, at each; only what has changed is written, so that typing stays smooth. The
// address that a reload needs can wait for the picture.
function say(said) {
  const says = JSON.parse(said.textContent);
  for (const place of document.querySelectorAll("[data-says]")) {
    const text = says[place.dataset.says] ?? "";
    if (place.textContent === text) continue;
    place.textContent = text;
    if (place.matches(".wrong")) place.closest("label").control.ariaInvalid = String(text !== "");
  }
  setTimeout(() => history.replaceState(history.state, "", said.dataset.address));
}

function enhance(root) {
  for (const element of root.querySelectorAll("[data-theme-toggle], [data-copy]")) {
    element.hidden = false;
  }
  localTimes(root);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if ("themeToggle" in button.dataset) switchTheme();
  if (button.dataset.copy) copy(button);
  if (button.dataset.opens) document.getElementById(button.dataset.opens).showModal();
  if ("closes" in button.dataset) button.closest("dialog").close();
});

// A page that was left open for longer than its session, or that lost the network, says so once.
document.addEventListener("htmx:sendError", () => {
  document.getElementById("offline")?.removeAttribute("hidden");
});
document.addEventListener("htmx:afterRequest", (event) => {
  if (event.detail.successful) document.getElementById("offline")?.setAttribute("hidden", "");
});
document.addEventListener("htmx:load", (event) => enhance(event.detail.elt));
document.addEventListener("htmx:afterOnLoad", () => {
  const said = document.getElementById("says");
  if (said) say(said);
});
// A plan holds nothing that htmx would have to clean up, and looking at each of its elements takes as long as all else.
document.addEventListener("htmx:beforeSwap", (event) => {
  if (event.target.id === "plan" && event.detail.shouldSwap) event.target.replaceChildren();
});
enhance(document);

// On a phone the navigation scrolls sideways: the page one is on is in sight.
const nav = document.querySelector(".nav");
const here = nav?.querySelector("[aria-current]");
if (here) nav.scrollLeft = here.offsetLeft - (nav.clientWidth - here.offsetWidth) / 2;
