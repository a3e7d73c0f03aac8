"use strict";
// The controls around two NiiVue canvases: the slices with the class maps, and the surfaces.

(async () => {
  const one = (selector) => document.querySelector(selector);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const fail = (text) => {
    one("#problem").textContent = text;
    one("#problem").hidden = false;
    one("#here").textContent = "nothing shown";
    document.body.dataset.state = "failed";
  };

  if (!document.createElement("canvas").getContext("webgl2")) {
    fail("This browser cannot draw the case: WebGL 2 is missing or switched off. Please open " +
      "this file in a current Firefox, Chrome, Edge or Safari, with hardware acceleration on.");
    return;
  }
  try {
    await show();
    document.body.dataset.state = "ready";
  } catch (error) {
    console.error(error);
    fail(`The case could not be drawn: ${error.message || error}`);
  }

  async function show() {
    const data = JSON.parse(one("#case").textContent);
    const common = {
      backColor: [0, 0, 0, 1], logLevel: "error", dragAndDropEnabled: false, isColorbar: false,
      viewModeHotKey: "", clipPlaneHotKey: "", cycleClipPlaneHotKey: "", loadingText: "",
    };

    // Slices: the scan, the prediction filled, the truth outlined.
    const planes = new niivue.Niivue({
      ...common, isRadiologicalConvention: true, sliceType: niivue.SLICE_TYPE.MULTIPLANAR,
      multiplanarShowRender: niivue.SHOW_RENDER.NEVER, crosshairColor: [0.4, 0.7, 1, 0.7],
      crosshairWidth: 0.6, crosshairGap: 12,
    });
    await planes.attachToCanvas(one("#planes"));
    const scan = await niivue.NVImage.loadFromBase64({
      base64: data.scan, name: "scan.nii.gz", colormap: "gray", cal_min: 0, cal_max: 255,
    });
    const maps = {};
    for (const [name, base64] of Object.entries(data.maps)) {
      const volume = await niivue.NVImage.loadFromBase64({
        base64, name: `${name}.nii.gz`, cal_min: 0, cal_max: 3,
      });
      const [R, G, B] = [0, 1, 2].map((channel) => data.colours[name].map((c) => c[channel]));
      volume.setColormapLabel({ R, G, B, A: [0, 255, 255, 255], labels: data.classes });
      maps[name] = { volume, classes: volume.img.slice() };
    }
    planes.volumes = [scan, ...Object.values(maps).map(({ volume }) => volume)];
    planes.setVolume(scan); // all at once: addVolume would prepare the scan anew for each map

    // Surfaces, in mm like the slices.
    const space = new niivue.Niivue({
      ...common, sliceType: niivue.SLICE_TYPE.RENDER, isOrientCube: true, show3Dcrosshair: false,
    });
    await space.attachToCanvas(one("#space"));
    const surfaces = [];
    for (const { mz3, map, class: number, colour, opacity } of data.surfaces) {
      const bytes = Uint8Array.from(atob(mz3), (c) => c.charCodeAt(0));
      const name = `${map}-${number}.mz3`;
      const mesh = await niivue.NVMesh.loadFromFile({
        file: new File([bytes], name), gl: space.gl, name, opacity, rgba255: [...colour, 255],
      });
      space.addMesh(mesh);
      surfaces.push({ mesh, map, number });
    }

    const on = (id) => one(`#${id}`)?.checked;
    const chosen = () => new Set(all(".class:checked").map((box) => Number(box.value)));
    function overlays() {
      const shown = chosen();
      for (const { volume, classes } of Object.values(maps)) {
        for (let i = 0; i < classes.length; i++) {
          volume.img[i] = shown.has(classes[i]) ? classes[i] : 0;
        }
      }
      opacities();
    }
    function opacities() {
      for (const id of ["opacity", "outline"]) {
        one(`output[for=${id}]`).value = `${Math.round(100 * one(`#${id}`).value)} %`;
      }
      maps.prediction.volume.opacity = on("prediction") ? Number(one("#opacity").value) : 0;
      if (maps.truth) {
        // NiiVue outlines label maps at an opacity of their own; the fill's must not be 0 for that.
        planes.opts.atlasOutline = on("truth") ? Number(one("#outline").value) : 0;
        maps.truth.volume.opacity = planes.opts.atlasOutline && 0.001;
      }
      // Not updateGLVolume, which prepares the scan anew too.
      planes.overlays.forEach((volume, n) => planes.refreshLayers(volume, n + 1));
      planes.drawScene();
      solids();
    }
    function solids() {
      const shown = chosen();
      for (const { mesh, map, number } of surfaces) {
        mesh.visible = map === null ? on("brain") : on(map) && shown.has(number);
      }
      space.drawScene();
    }

    // Where the crosshair is: the sliders and the line of text follow.
    const size = planes.volumes[0].dimsRAS.slice(1, 4);
    const sliders = all(".slice");
    planes.onLocationChange = ({ mm, vox, values }) => {
      for (const slider of sliders) {
        const at = vox[slider.dataset.axis] + 1;
        slider.value = at;
        slider.nextElementSibling.value = `${at} / ${slider.max}`;
      }
      const named = Object.keys(maps).map((name, n) => {
        const index = values[n + 1] ? Math.round(values[n + 1].value) : 0;
        return `${name}: ${data.classes[index] ?? "?"}`;
      });
      const where = [...mm].slice(0, 3).map((x) => x.toFixed(0)).join(", ");
      one("#here").textContent = `at ${where} mm; ${named.join("; ")}`;
    };
    const move = (axis, step) => {
      const by = [0, 0, 0];
      by[axis] = step;
      planes.moveCrosshairInVox(...by);
    };
    for (const slider of sliders) {
      const axis = Number(slider.dataset.axis);
      slider.max = size[axis];
      slider.addEventListener("input", () => {
        const at = planes.frac2vox(planes.scene.crosshairPos)[axis];
        move(axis, slider.value - 1 - at);
      });
    }
    function reset() {
      planes.scene.pan2Dxyzmm = [0, 0, 0, 1];
      planes.scene.crosshairPos = data.focus_mm ? planes.mm2frac(data.focus_mm) : [0.5, 0.5, 0.5];
      planes.createOnLocationChange();
      planes.drawScene();
      space.setScale(1);
      space.setRenderAzimuthElevation(110, 15);
    }

    // The canvas of the slices fills the pane; the one of the surfaces lies over the free quarter.
    const { AXIAL, CORONAL, SAGITTAL } = niivue.SLICE_TYPE;
    const [, depth, height] = size.map((n, axis) => n * scan.pixDimsRAS[axis + 1]);
    const top = depth / (depth + height); // one scale for all three
    document.body.style.setProperty("--top", `${100 * top}%`);
    const layouts = {
      both: [[AXIAL, 0, 0, 0.5, top], [CORONAL, 0, top, 0.5, 1 - top],
        [SAGITTAL, 0.5, top, 0.5, 1 - top]],
      planes: [[AXIAL, 0, 0, 0.6, 1], [CORONAL, 0.6, 0, 0.4, 0.5], [SAGITTAL, 0.6, 0.5, 0.4, 0.5]],
    };
    const views = all("button[data-view]");
    function view(name) {
      document.body.dataset.view = name;
      if (layouts[name]) {
        planes.setCustomLayout(
          layouts[name].map(([sliceType, ...position]) => ({ sliceType, position })));
      }
      for (const button of views) button.setAttribute("aria-pressed", button.dataset.view === name);
    }
    for (const button of views) button.addEventListener("click", () => view(button.dataset.view));
    for (const box of all(".class")) box.addEventListener("change", overlays);
    one("#brain").addEventListener("change", solids);
    for (const id of ["prediction", "truth"]) one(`#${id}`).addEventListener("change", opacities);
    for (const id of ["opacity", "outline"]) one(`#${id}`).addEventListener("input", opacities);
    one("#crosshair").addEventListener("change", () => {
      planes.setCrosshairWidth(on("crosshair") ? 0.6 : 0);
    });
    one("#smooth").addEventListener("change", () => planes.setInterpolation(!on("smooth")));

    const keys = {
      p: () => one("#prediction").click(),
      t: () => maps.truth && one("#truth").click(),
      x: () => one("#crosshair").click(),
      s: () => one("#smooth").click(),
      b: () => one("#brain").click(),
      v: () => view({ both: "planes", planes: "space", space: "both" }[document.body.dataset.view]),
      r: reset,
      ArrowUp: () => move(2, 1),
      ArrowDown: () => move(2, -1),
      ArrowLeft: () => move(0, 1), // the patient's left is on the right
      ArrowRight: () => move(0, -1),
      PageUp: () => move(1, 1),
      PageDown: () => move(1, -1),
    };
    for (const c of [1, 2, 3]) keys[c] = () => one(`.class[value="${c}"]`).click();
    // Before NiiVue, whose own keys would act too.
    window.addEventListener("keydown", (event) => {
      const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
      const modified = event.ctrlKey || event.metaKey || event.altKey;
      if (!act || modified || (event.target.type === "range" && event.key.length > 1)) return;
      event.preventDefault();
      event.stopPropagation();
      act();
    }, true);

    view("both");
    overlays();
    reset();
    window.viewer = { planes, space, maps, surfaces }; // for the console
  }
})();
