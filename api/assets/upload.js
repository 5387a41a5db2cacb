// Uploading with drag and drop and progress. Without this script the same form uploads plainly.

function send(form, file) {
  const data = new FormData(form);
  data.set("file", file);
  const progress = form.querySelector("progress");
  const said = form.querySelector("[data-upload-state]");
  const request = new XMLHttpRequest();
  request.upload.onprogress = ({ loaded, total }) => {
    progress.hidden = false;
    progress.value = loaded / total;
    const percent = Math.floor((100 * loaded) / total);
    said.textContent = loaded < total ? `Uploading ${file.name}: ${percent}%` : "Looking into it …";
  };
  request.onload = () => {
    if (request.status < 400) {
      location.assign(request.responseURL);
      return;
    }
    progress.hidden = true;
    said.innerHTML = request.responseText; // our own problem page, which escapes what it quotes
  };
  request.onerror = () => {
    progress.hidden = true;
    said.textContent = "The connection was lost before the file arrived. Drop it again.";
  };
  request.open("POST", form.action);
  request.setRequestHeader("hx-request", "true");
  request.send(data);
}

function listen(form) {
  const input = form.querySelector("input[type=file]");
  input.addEventListener("change", () => {
    if (input.files.length) send(form, input.files[0]);
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (input.files.length) send(form, input.files[0]);
  });
  for (const name of ["dragenter", "dragover"]) {
    form.addEventListener(name, (event) => {
      event.preventDefault();
      form.classList.add("over");
    });
  }
  for (const name of ["dragleave", "drop"]) {
    form.addEventListener(name, () => form.classList.remove("over"));
  }
  form.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files.length) send(form, event.dataTransfer.files[0]);
  });
}

// Also those that come later, with a part of the page.
document.addEventListener("htmx:load", (event) => {
  for (const form of event.detail.elt.querySelectorAll("form[data-upload]")) listen(form);
});
