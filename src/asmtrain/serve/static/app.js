// What pages do beyond links and forms; all of it can be left out.
"use strict";

const form = document.getElementById("ask");
if (form) {
  const file = document.getElementById("file");
  const text = document.getElementById("text");
  const problem = document.getElementById("problem");
  const drop = document.getElementById("drop");
  const button = form.querySelector("button");
  const limit = Number(form.dataset.maxBytes);

  const tell = (message) => {
    problem.textContent = message;
    problem.hidden = !message;
  };
  const tooLarge = () => {
    const size = file.files.length ? file.files[0].size : text.value.length;
    return size > limit ? `This has ${(size / 1e6).toFixed(1)} MB; at most ${limit / 1e6} MB can be sent.` : "";
  };
  file.addEventListener("change", () => tell(tooLarge()));
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  form.addEventListener("submit", (event) => {
    const message = tooLarge() || (file.files.length || text.value.trim() ? "" : "Choose a file or paste assembly.");
    tell(message);
    if (message) {
      event.preventDefault();
      return;
    }
    button.disabled = true;
    button.textContent = "Reading...";
  });
  window.addEventListener("pageshow", () => {
    button.disabled = false;
    button.textContent = "Search";
  });
  for (const name of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", name === "dragover");
    });
  }
  document.addEventListener("drop", (event) => {
    if (!event.dataTransfer.files.length) return;
    file.files = event.dataTransfer.files;
    tell(tooLarge());
  });
}

const filter = document.getElementById("filter");
if (filter) {
  const rows = document.getElementById(filter.dataset.rows).tBodies[0].rows;
  filter.addEventListener("input", () => {
    const wanted = filter.value.toLowerCase();
    for (const row of rows) row.hidden = !row.dataset.name.toLowerCase().includes(wanted);
  });
}

for (const choices of document.querySelectorAll('form[data-submit="change"]')) {
  choices.querySelector("button").hidden = true;
  choices.addEventListener("change", () => choices.requestSubmit());
}
