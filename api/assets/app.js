// The dashboard's only script. Pages work without it for reading; it makes them live.
import "htmx.org";
import "./page.js";
import "./run-chart.js";
import "./run-log.js";
import "./upload.js";
