/* What a page must fulfil for readers with a keyboard, a screen reader or weak sight: of axe-core's serious rules,
   those that a static page can break. Returns the number of texts that were looked at, and what is wrong. */
(() => {
  const wrong = [], all = (selector) => [...document.querySelectorAll(selector)];
  const say = (what, node) => wrong.push(`${what}: ${node.outerHTML ? node.outerHTML.slice(0, 120) : node}`);
  const name = (node) => node.getAttribute("aria-label") || [...(node.labels ?? [])].map((label) =>
    [...label.childNodes].filter((part) => part !== node).map((part) => part.textContent).join("")).join("").trim()
    || (node.matches("select, input") ? "" : node.textContent.trim());
  for (const node of [document.documentElement, ...all("[lang]")]) if (!/^[a-z]{2}(-\w+)?$/.test(node.lang)) say("language", node);
  const ids = all("[id]").map((node) => node.id);
  ids.filter((id, at) => ids.indexOf(id) !== at).forEach((id) => say("id twice", id));
  for (const node of all("button, a[href], select, input, textarea, [role=region], [role=group], [role=img], nav"))
    if (!name(node)) say("no name", node);
  const levels = all("h1, h2, h3, h4, h5, h6");
  levels.forEach((node, at) => {
    if (node.tagName[1] - (at ? levels[at - 1].tagName[1] : 0) > 1) say("heading level skipped", node);
  });
  for (const node of all("th")) if (!node.scope || !node.textContent.trim()) say("th without scope or text", node);
  for (const node of all("table")) if (!node.querySelector("th")) say("table without headings", node);
  for (const node of all("img, svg")) if (node.getAttribute("role") !== "img" && !node.closest("svg[role=img]")) say("image", node);
  for (const node of all("dl > :not(dt, dd, div), ul > :not(li), ol > :not(li)")) say("not of a list", node);
  const roles = ["img", "region", "group", "status"];
  const values = { "aria-label": /\S/, "aria-live": /^polite$/, "aria-pressed": /^(true|false)$/, "aria-sort": /^(a|de)scending$/ };
  for (const node of all("*")) {
    for (const { name: key, value } of node.attributes)
      if (key.startsWith("aria-") && !values[key]?.test(value) || key === "role" && !roles.includes(value) || key === "tabindex" && value !== "0")
        say(`${key}=${value}`, node);
    const scrolls = ["auto", "scroll"].some((kind) => getComputedStyle(node).overflowX === kind && node.scrollWidth > node.clientWidth + 1
      || getComputedStyle(node).overflowY === kind && node.scrollHeight > node.clientHeight + 1);
    if (scrolls && node !== document.documentElement && node.tabIndex < 0 && !node.querySelector("a, button")) say("scrolls without a keyboard", node);
  }
  const parse = (colour) => {
    const found = colour.match(/[\d.]+/g).map(Number), scale = colour.startsWith("color(") ? 255 : 1;
    return [...found.slice(0, 3).map((part) => part * scale), found[3] ?? 1];
  };
  const over = ([r, g, b, a], below) => [r, g, b].map((part, at) => part * a + below[at] * (1 - a));
  const ground = (node) => node ? over(parse(getComputedStyle(node).backgroundColor), ground(node.parentElement)) : [255, 255, 255];
  const light = (colour) => colour.map((part) => part / 255).map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
  let texts = 0;
  for (const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT); walk.nextNode();) {
    const node = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || node.matches("script, annotation") || !node.checkVisibility({ visibilityProperty: true })) continue;
    texts++;
    const style = getComputedStyle(node), below = ground(node);
    const ends = [light(over(parse(node.closest("svg") ? style.fill : style.color), below)), light(below)].sort((a, b) => a - b);
    const ratio = (ends[1] + 0.05) / (ends[0] + 0.05), size = parseFloat(style.fontSize);
    if (ratio < (size >= 24 || size >= 18.66 && style.fontWeight >= 700 ? 3 : 4.5)) say(`contrast ${ratio.toFixed(2)}`, node);
  }
  return [texts, wrong];
})()
