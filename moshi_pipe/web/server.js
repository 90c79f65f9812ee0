// @ts-check
/** What the page asks the server besides conversations. */

const KEPT = "moshi-pipe.token";

/** @typedef {Record<string, any>} Info Of `/api/info`; see docs/protocol.md. */

/** @returns {Promise<Info | null>} Null if it cannot be had now. */
export async function readInfo() {
  try {
    const answer = await fetch("api/info", { cache: "no-store" });
    return answer.ok ? await answer.json() : null;
  } catch {
    return null;
  }
}

/** The token of this tab; a link may have brought it, and its address is cleaned then. */
export function keptToken() {
  const url = new URL(location.href);
  const brought = url.searchParams.get("token");
  if (brought) {
    keepToken(brought);
    url.searchParams.delete("token");
    history.replaceState(null, "", url);
  }
  return sessionStorage.getItem(KEPT) ?? "";
}

/** @param {string} token */
export function keepToken(token) {
  if (token) sessionStorage.setItem(KEPT, token);
  else sessionStorage.removeItem(KEPT);
}

/**
 * Whether the server takes a token; where it cannot tell, the conversation will.
 * @param {string} token
 */
export async function isTokenRight(token) {
  try {
    const headers = { authorization: `Bearer ${token}` };
    return (await fetch("metrics", { headers, cache: "no-store" })).status !== 401;
  } catch {
    return true;
  }
}

/**
 * Why a websocket could not be opened, which a page is not told: a word of texts.js.
 * @param {string} token
 */
export async function whyUnreachable(token) {
  const info = await readInfo();
  if (!info) return "unreachable";
  if (info.auth && !(await isTokenRight(token))) return "token";
  try {
    return (await fetch("readyz", { cache: "no-store" })).ok ? "refused" : "not_ready";
  } catch {
    return "unreachable";
  }
}
