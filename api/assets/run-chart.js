// <run-chart>: the curves of one or more runs. Holds every point once, by step, in whatever order they come.
import uPlot from "uplot";

const STEP = 0;
const HEIGHT = 260;
const SMALL_HEIGHT = 120;
const WHOLE_STEPS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 50000, 100000];

const GIB = 1024 ** 3;

// How the values of a curve read, by the format that its field names.
const FORMATS = {
  loss: (value) => value.toPrecision(4),
  share: (value) => `${(value * 100).toFixed(1)}%`,
  rate: (value) => value.toExponential(1),
  speed: (value) => Math.round(value).toLocaleString(),
  memory: (value) => `${(value / GIB).toFixed(1)} GiB`,
};

/** Rows of [step, value, …], ascending by step; a step's later report fills what its earlier one left open. */
export class Points {
  constructor(rows) {
    this.rows = [];
    for (const row of rows) this.add(row);
  }

  add(row) {
    let at = this.rows.length;
    while (at > 0 && this.rows[at - 1][STEP] > row[STEP]) at -= 1;
    const known = this.rows[at - 1];
    if (known && known[STEP] === row[STEP]) {
      row.forEach((value, index) => {
        if (known[index] === null) known[index] = value;
      });
    } else {
      this.rows.splice(at, 0, [...row]);
    }
  }

  column(index) {
    return this.rows.map((row) => row[index]);
  }
}

class RunChart extends HTMLElement {
  connectedCallback() {
    this.fields = JSON.parse(this.dataset.fields); // {at, label, format, color, dots} each
    this.points = new Points(JSON.parse(this.querySelector("script").textContent));
    this.listeners = new AbortController();
    const options = { signal: this.listeners.signal };
    document.addEventListener("runpoints", (event) => this.take(event.detail), options);
    document.addEventListener("themechanged", () => this.build(), options);
    matchMedia("(prefers-color-scheme: dark)").addEventListener(
      "change",
      () => this.build(),
      options,
    );
    this.sizes = new ResizeObserver(() => this.plot?.setSize(this.size()));
    this.sizes.observe(this);
    this.build();
  }

  disconnectedCallback() {
    this.listeners.abort();
    this.sizes.disconnect();
    cancelAnimationFrame(this.frame);
    this.plot?.destroy();
  }

  take(rows) {
    for (const row of rows) this.points.add(row);
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => {
      if (this.plot) this.plot.setData(this.data());
      else this.build();
    });
  }

  data() {
    return [this.points.column(STEP), ...this.fields.map(({ at }) => this.points.column(at))];
  }

  size() {
    const height = "small" in this.dataset ? SMALL_HEIGHT : HEIGHT;
    return { width: Math.max(this.clientWidth, 120), height };
  }

  build() {
    this.plot?.destroy();
    this.plot = null;
    const places = this.fields.map(({ at }) => at);
    if (!this.points.rows.some((row) => places.some((at) => row[at] !== null))) return;
    for (const fallback of this.querySelectorAll("svg, .chart-empty")) fallback.remove();
    this.plot = new uPlot(this.options(), this.data(), this);
  }

  options() {
    const [grid, text] = [this.color("--line"), this.color("--text-faint")];
    const axis = { stroke: text, font: "12px system-ui", grid: { stroke: grid, width: 1 } };
    const format = FORMATS[this.fields[0].format];
    const quiet = { show: false };
    return {
      ...this.size(),
      cursor: { points: { size: 7 }, drag: { x: true, y: false } },
      legend: { show: !("small" in this.dataset), live: true },
      scales: { x: { time: false } },
      axes: [
        { ...axis, ticks: quiet, size: 30, space: 70, incrs: WHOLE_STEPS },
        { ...axis, ticks: quiet, size: 66, values: (_plot, ticks) => ticks.map(format) },
      ],
      series: [
        { label: "Step", value: (_plot, value) => value?.toLocaleString() ?? "–" },
        ...this.fields.map((field) => this.series(field)),
      ],
    };
  }

  series({ label, format, color, dots }) {
    return {
      label,
      stroke: this.color(color),
      width: dots ? 2 : 1.5,
      spanGaps: true,
      points: { show: dots || this.points.rows.length < 3, size: 6 },
      value: (_plot, value) => (value == null ? "–" : FORMATS[format](value)),
    };
  }

  /** A colour of the theme as the canvas needs it: computed, not as a variable. */
  color(name) {
    this.style.color = `var(${name})`;
    const computed = getComputedStyle(this).color;
    this.style.color = "";
    return computed;
  }
}

customElements.define("run-chart", RunChart);
