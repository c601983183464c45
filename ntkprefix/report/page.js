"use strict";
// Draws the page's plots with plotly.js and makes their buttons work.
(() => {
  const config = {
    displaylogo: false,
    responsive: true,
    modeBarButtons: [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"]],
  };
  // Fits a page of A4 or letter paper with its margins.
  const PAPER = 640;
  const plots = [];

  // Colours of what is not a line, from the style sheet, light or dark.
  const look = () => {
    const style = getComputedStyle(document.documentElement);
    const [paper, ink, line, box] = ["--paper", "--ink", "--line", "--box"].map((name) => style.getPropertyValue(name));
    return {
      paper_bgcolor: paper,
      plot_bgcolor: paper,
      "font.color": ink,
      "xaxis.gridcolor": line,
      "yaxis.gridcolor": line,
      "xaxis.zerolinecolor": line,
      "yaxis.zerolinecolor": line,
      "hoverlabel.bgcolor": box,
      "hoverlabel.font.color": ink,
      "modebar.color": ink,
      "modebar.bgcolor": paper,
    };
  };
  const redraw = (change) => plots.forEach((plot) => Plotly.relayout(plot, change));

  const press = (button, on) => button.setAttribute("aria-pressed", String(on));
  const pressed = (button) => button.getAttribute("aria-pressed") === "true";

  const show = (plot, buttons) => {
    const on = new Map(buttons.map((button) => [button.dataset.group, pressed(button)]));
    Plotly.restyle(plot, { visible: plot.data.map((trace) => on.get(trace.legendgroup)) });
  };

  for (const figure of document.querySelectorAll("figure")) {
    const plot = figure.querySelector(".plot");
    const { data, layout } = JSON.parse(figure.querySelector("script").textContent);
    // A finger that drags wants to scroll the page; the plot's own buttons zoom.
    layout.dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom";
    layout.font = { family: "system-ui, sans-serif", size: 12 };
    // plotly.js changes what it is given.
    const rows = structuredClone(layout.yaxis.range);
    const home = { "xaxis.autorange": true, ...(rows ? { "yaxis.range": rows } : { "yaxis.autorange": true }) };
    try {
      Plotly.newPlot(plot, data, layout, config);
    } catch (error) {
      // One plot takes no other with it.
      console.error(error);
      plot.textContent = "This plot cannot be drawn.";
      continue;
    }
    plots.push(plot);

    const groups = [...figure.querySelectorAll("[data-group]")];
    figure.addEventListener("click", ({ target }) => {
      const button = target.closest("button");
      if (!button) return;
      if ("group" in button.dataset) {
        press(button, !pressed(button));
        show(plot, groups);
      } else if ("all" in button.dataset) {
        groups.forEach((each) => press(each, button.dataset.all === "true"));
        show(plot, groups);
      } else if ("log" in button.dataset) {
        press(button, !pressed(button));
        const axis = `${button.dataset.log}axis`;
        Plotly.relayout(plot, { [`${axis}.type`]: pressed(button) ? "log" : "linear", [`${axis}.autorange`]: true });
      } else if ("reset" in button.dataset) {
        Plotly.relayout(plot, home);
      }
    });
  }
  redraw(look());

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw(look()));
  addEventListener("beforeprint", () => {
    document.documentElement.dataset.print = "";
    redraw({ ...look(), width: PAPER });
  });
  addEventListener("afterprint", () => {
    delete document.documentElement.dataset.print;
    redraw({ ...look(), width: null, autosize: true });
  });
  document.documentElement.dataset.drawn = plots.length;
})();
