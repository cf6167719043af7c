// What is too wide for the page scrolls by itself: give it a stop of the tab key, so that arrow keys reach the rest of it.
function markScrolling() {
  for (const element of document.querySelectorAll("table.table, .formula, .flowchart")) {
    if (element.scrollWidth > element.clientWidth) {
      element.tabIndex = 0;
    } else {
      element.removeAttribute("tabindex");
    }
  }
}

addEventListener("load", markScrolling);
addEventListener("resize", markScrolling);
