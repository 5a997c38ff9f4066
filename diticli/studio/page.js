() => {
  // What a screen reader says: a picture by its label, and new results as they come.
  const describe = () => {
    for (const block of document.querySelectorAll(".pixelated, .titled")) {
      const label = block.querySelector("label")?.innerText.trim(), image = block.querySelector("img");
      if (image && label && image.alt !== label) image.alt = label;
    }
    for (const field of document.querySelectorAll("textarea, input")) {
      const title = field.labels?.length ? "" : field.closest(".block")?.querySelector("[data-testid=block-info]")?.innerText;
      if (title && !field.ariaLabel) field.ariaLabel = title.trim();
    }
    for (const part of document.querySelectorAll("#status, #also-changed, #inside-facts")) part.ariaLive = "polite";
  };
  new MutationObserver(describe).observe(document.body, { childList: true, subtree: true });
  describe();
}
