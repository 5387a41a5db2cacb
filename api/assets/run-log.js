// <run-log>: what a run says, as it says it. It owns the page's one connection and hands points on to the charts.

const RECONNECT_MILLISECONDS = 2000;
const REFRESH_MILLISECONDS = 1000;
const MOST_LINES = 300;

class RunLog extends HTMLElement {
  connectedCallback() {
    this.list = this.querySelector("ol");
    this.after = this.dataset.after;
    if (this.dataset.stream) this.connect();
  }

  disconnectedCallback() {
    this.source?.close();
    clearTimeout(this.retry);
    clearTimeout(this.refresh);
  }

  /** The browser reconnects by itself and says where it was; what it gives up on is taken up again from there. */
  connect() {
    const url = new URL(this.dataset.stream, location.href);
    if (this.after) url.searchParams.set("after", this.after);
    this.source = new EventSource(url);
    this.source.onopen = () => this.showConnection(true);
    this.source.onmessage = (event) => this.take(event);
    this.source.onerror = () => {
      this.showConnection(false);
      if (this.source.readyState === EventSource.CLOSED) {
        this.retry = setTimeout(() => this.connect(), RECONNECT_MILLISECONDS);
      }
    };
  }

  take(event) {
    if (event.data === "[DONE]") {
      this.source.close();
      this.announce();
      return;
    }
    this.after = event.lastEventId;
    const said = JSON.parse(event.data);
    if (said.point) {
      document.dispatchEvent(new CustomEvent("runpoints", { detail: [said.point] }));
    } else {
      this.write(said);
    }
    this.announceSoon();
  }

  write({ at, level, message }) {
    const line = document.createElement("li");
    const time = document.createElement("time");
    time.dateTime = at;
    time.textContent = new Date(at).toLocaleTimeString();
    line.className = `log-${level}`;
    line.append(time, message);
    this.list.prepend(line);
    while (this.list.children.length > MOST_LINES) this.list.lastElementChild.remove();
  }

  showConnection(isOpen) {
    document.getElementById("offline")?.toggleAttribute("hidden", isOpen);
  }

  /** The rest of the page is fetched anew at most once a second, however fast the run reports. */
  announceSoon() {
    this.refresh ??= setTimeout(() => this.announce(), REFRESH_MILLISECONDS);
  }

  announce() {
    clearTimeout(this.refresh);
    this.refresh = undefined;
    document.body.dispatchEvent(new Event("runchanged"));
  }
}

customElements.define("run-log", RunLog);
