// @ts-check
/** Keeps the screen on in a conversation: a phone that goes dark takes the microphone away. */

/** @type {WakeLockSentinel | null} */
let lock = null;
let wanted = false;

/** @param {boolean} yes */
export async function stayAwake(yes) {
  if (wanted === yes) return;
  wanted = yes;
  await apply();
}

async function apply() {
  if (!("wakeLock" in navigator)) return;
  try {
    const seen = document.visibilityState === "visible";
    if (wanted && seen) lock = await navigator.wakeLock.request();
    if (wanted) return; // else it is over, perhaps while the lock was asked for
    await lock?.release();
    lock = null;
  } catch {
    // A low battery, or a browser's own reasons: then it goes dark as ever.
  }
}

// Whoever looks elsewhere loses the lock.
document.addEventListener("visibilitychange", apply);
