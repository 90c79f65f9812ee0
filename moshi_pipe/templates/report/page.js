"use strict";
// Plays both sides of a conversation together, and shows on its time line where it is.
for (const talk of document.querySelectorAll(".talk")) {
  const sounds = [...talk.querySelectorAll("audio")];
  const strips = [...talk.querySelectorAll(".strip")];
  const button = talk.querySelector(".together");
  if (!sounds.length) continue;

  const show = (seconds) => {
    for (const strip of strips) {
      const { begin, gutter, perS } = strip.dataset;
      const inside = seconds - Number(begin);
      const head = strip.querySelector(".head");
      const right = strip.viewBox.baseVal.width - 8;
      const x = Number(gutter) + inside * Number(perS);
      head.style.visibility = inside >= 0 && x <= right ? "visible" : "hidden";
      head.setAttribute("x1", x);
      head.setAttribute("x2", x);
    }
  };
  const running = () => sounds.find((sound) => !sound.paused && !sound.ended);
  const follow = () => {
    const sound = running();
    if (button) button.textContent = sound ? "Stop" : "Play both";
    if (!sound) return;
    show(sound.currentTime);
    requestAnimationFrame(follow);
  };
  for (const sound of sounds) {
    sound.addEventListener("play", follow);
    sound.addEventListener("seeked", () => show(sound.currentTime));
  }
  const playFrom = (seconds) => {
    for (const sound of sounds) {
      sound.currentTime = seconds;
      sound.play().catch(() => {});
    }
  };
  if (button) {
    button.addEventListener("click", () => {
      if (running()) sounds.forEach((sound) => sound.pause());
      else playFrom(0);
    });
  }
  for (const strip of strips) {
    strip.addEventListener("click", (event) => {
      const box = strip.getBoundingClientRect();
      const { begin, gutter, perS } = strip.dataset;
      const x = ((event.clientX - box.left) / box.width) * strip.viewBox.baseVal.width;
      playFrom(Math.max(0, Number(begin) + (x - Number(gutter)) / Number(perS)));
    });
  }
}
