// Single keys for the review panel: heard anywhere in it, but not while a text is typed.
export function render({ model, el }) {
  let panel = null;
  const heard = (event) => {
    if (/^(TEXTAREA|INPUT|SELECT)$/.test(event.target.tagName)) return;
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (!model.get("known").includes(event.key)) return;
    event.preventDefault();
    event.stopPropagation();
    model.set("pressed", [event.key, model.get("pressed")[1] + 1]);
    model.save_changes();
    panel.focus();
  };
  const attach = () => {  // a child is drawn before it hangs in its panel
    panel = el.closest(".finer1-review");
    if (!panel) { timer = setTimeout(attach, 50); return; }
    panel.tabIndex = 0;
    panel.setAttribute("data-lm-suppress-shortcuts", "true");
    panel.addEventListener("keydown", heard);
  };
  let timer = setTimeout(attach, 0);
  return () => {
    clearTimeout(timer);
    panel?.removeEventListener("keydown", heard);
  };
}
