// Figures and data as files: SVG and PNG with the colours of the page written into them, CSV.

/** Offer a file to the reader. content: text or Blob. */
function download(name, type, content) {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  const link = node("a", { href: url, download: name });
  link.style.display = "none";
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

/** An SVG element as a file's text: CSS variables become the colours in force. */
function svgText(element) {
  const computed = getComputedStyle(element);
  const copy = element.cloneNode(true);
  copy.setAttribute("xmlns", SVG);
  const text = new XMLSerializer().serializeToString(copy);
  return text.replace(/var\((--kpt-[a-z0-9-]+)\)/g, (_, name) => computed.getPropertyValue(name).trim() || "#000000");
}

/** An SVG element as a PNG Blob at twice its size. */
function pngOf(element) {
  const { width, height } = element.viewBox.baseVal;
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svgText(element))}`;
  return image.decode().then(() => {
    const canvas = node("canvas", { width: Math.round(2 * width), height: Math.round(2 * height) });
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  });
}

/** Rows of cells as CSV, quoted where needed. */
function csv(rows) {
  const field = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return `${rows.map((row) => row.map(field).join(",")).join("\r\n")}\r\n`;
}

/** Put text on the clipboard; resolves to whether that worked. Pages opened from a file may have no clipboard of their own. */
async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = node("textarea", { class: "kpt-offscreen", readonly: true });
    area.value = text;
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    return copied;
  }
}

/** A button that copies text() and says so for a moment. */
function copyButton(name, text) {
  const made = button(name, async () => {
    const copied = await copyText(text());
    made.set(copied ? "Copied" : "Copying is not allowed here");
    setTimeout(() => made.set(name), 1600);
  });
  return made;
}
