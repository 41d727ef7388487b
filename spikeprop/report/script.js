for (const box of document.querySelectorAll("[data-shows]")) {
  box.addEventListener("change", () => {
    for (const part of document.querySelectorAll(`[data-run="${box.dataset.shows}"]`)) part.style.display = box.checked ? "" : "none";
  });
}
// A link into a folded part unfolds it.
function unfold() {
  let part = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const inner = part && part.parentElement && part.parentElement.querySelector("details");
  if (part && part.tagName === "H2" && inner) inner.open = true;
  for (; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
}
addEventListener("hashchange", unfold);
unfold();
