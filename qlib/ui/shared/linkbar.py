"""The buttons that only the browser can work: copy the address, begin afresh."""

from collections.abc import Mapping

from streamlit.components.v2 import component

HTML = """
<div class="bar">
  <button class="copy" type="button" title="Copy the address of this very view">Copy link</button>
  <button class="reset" type="button" title="Show this page as it opens first">Reset</button>
</div>
<input class="link" readonly hidden aria-label="Link to this view: press Ctrl+C to copy it">
<span class="said" role="status"></span>
"""
CSS = """
.bar { display: flex; gap: 0.5rem; }
button { flex: 1; font: inherit; font-size: 0.875rem; min-height: 2.1rem; padding: 0.2rem 0.3rem;
  white-space: nowrap;
  color: var(--st-text-color); background: transparent; cursor: pointer;
  border: 1px solid var(--st-border-color); border-radius: var(--st-button-radius, 0.5rem); }
button:hover, button:focus-visible { color: var(--st-primary-color);
  border-color: var(--st-primary-color); outline: none; }
button:focus-visible { box-shadow: 0 0 0 2px var(--st-primary-color); }
.link { width: 100%; box-sizing: border-box; margin-top: 0.4rem; font: inherit;
  font-size: 0.8rem; color: var(--st-text-color); background: transparent;
  border: 1px solid var(--st-border-color); }
.said { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
"""
# Browsers hand out the clipboard only on https and on this very machine; on plain http an older
# command does it, and where that fails too the address is shown, selected, to be copied by hand.
JS = """
function byHand(text, box) {
  box.hidden = false; box.value = text; box.focus(); box.select();
  let done = false;
  try { done = document.execCommand("copy"); } catch (_) { }
  if (done) { box.hidden = true; }
  return done;
}
export default function ({ data, parentElement }) {
  const find = name => parentElement.querySelector(name);
  const copy = find(".copy"), said = find(".said"), box = find(".link");
  copy.onclick = async () => {
    const url = new URL(window.location.href);
    for (const [key, value] of Object.entries(data.params)) { url.searchParams.set(key, value); }
    const text = url.toString();
    let done = false;
    try { await navigator.clipboard.writeText(text); done = true; }
    catch (_) { done = byHand(text, box); if (done) { copy.focus(); } }
    const words = done ? "Copied" : "Press Ctrl+C";
    said.textContent = words; copy.textContent = words;
    setTimeout(() => { copy.textContent = "Copy link"; said.textContent = ""; }, 2000);
  };
  find(".reset").onclick = () => { window.location.assign(window.location.pathname); };
}
"""


def draw(params: Mapping[str, str]) -> None:
    """Show Copy link, with ``params`` written out even where they are the defaults."""
    _component()(key="linkbar", data={"params": dict(params)}, width=126, height="content")


def _component():
    return component("linkbar", html=HTML, css=CSS, js=JS)
