// Swagger UI has a dark theme of its own, by this class: the dashboard's choice decides, else the system's.
const systemIsDark = matchMedia("(prefers-color-scheme: dark)");

function followTheme() {
  const chosen = document.documentElement.dataset.theme;
  const isDark = chosen ? chosen === "dark" : systemIsDark.matches;
  document.documentElement.classList.toggle("dark-mode", isDark);
}

followTheme();
systemIsDark.addEventListener("change", followTheme);

SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#reference",
  deepLinking: true,
  filter: true,
  persistAuthorization: false,
  tryItOutEnabled: true,
  displayRequestDuration: true,
  validatorUrl: null,
});
