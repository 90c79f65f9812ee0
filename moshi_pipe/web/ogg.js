// @ts-check
/**
 * Ogg pages that carry Opus, one logical stream at a time.
 * Source: RFC 3533 (pages, checksum) and RFC 7845 (headers, granule position in 1/48000 s).
 */

const CRC = new Uint32Array(256).map((_, byte) => {
  let rest = byte << 24;
  for (let bit = 0; bit < 8; bit++) rest = rest & 0x80000000 ? (rest << 1) ^ 0x04c11db7 : rest << 1;
  return rest >>> 0;
});
const HEADER = 27; // bytes of a page before its table of segments
const CHECKSUM = 22; // where the checksum is in it
const FIRST = 2;
const LAST = 4;
const CONTINUED = 1;

/** @param {Uint8Array} bytes */
export function checksum(bytes) {
  let crc = 0;
  for (const byte of bytes) crc = ((crc << 8) ^ CRC[((crc >>> 24) ^ byte) & 255]) >>> 0;
  return crc;
}

/** @param {Uint8Array[]} parts */
function join(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

/** Writes one packet per page, so that nothing waits. */
export class PageWriter {
  #serial;
  #sequence = 0;

  /** @param {number} serial Number of the stream, 32 bits. */
  constructor(serial) {
    this.#serial = serial >>> 0;
  }

  /**
   * The two pages that begin a stream.
   * @param {Uint8Array} head The packet OpusHead.
   * @param {string} vendor Who wrote it.
   */
  headers(head, vendor) {
    const name = new TextEncoder().encode(vendor);
    const tags = new Uint8Array(16 + name.length);
    tags.set(new TextEncoder().encode("OpusTags"));
    new DataView(tags.buffer).setUint32(8, name.length, true);
    tags.set(name, 12);
    return join([this.page(head, 0, FIRST), this.page(tags, 0)]);
  }

  /**
   * A page of one packet of less than 65,025 bytes.
   * @param {Uint8Array} packet
   * @param {number} granule Position of its end, in 1/48000 s.
   * @param {number} flags
   */
  page(packet, granule, flags = 0) {
    const segments = Math.floor(packet.length / 255) + 1;
    if (segments > 255) throw new RangeError(`a packet of ${packet.length} bytes fits no page`);
    const page = new Uint8Array(HEADER + segments + packet.length);
    const view = new DataView(page.buffer);
    page.set([0x4f, 0x67, 0x67, 0x53, 0, flags]); // OggS, version 0
    view.setBigUint64(6, BigInt(granule), true);
    view.setUint32(14, this.#serial, true);
    view.setUint32(18, this.#sequence++, true);
    page[26] = segments;
    page.fill(255, HEADER, HEADER + segments - 1);
    page[HEADER + segments - 1] = packet.length % 255;
    page.set(packet, HEADER + segments);
    view.setUint32(CHECKSUM, checksum(page), true);
    return page;
  }
}

/**
 * Takes pages out of bytes, however they were cut, and packets out of pages. Damaged pages are
 * left out, with the packets that reach into them.
 */
export class PageReader {
  #rest = new Uint8Array(0);
  /** @type {Uint8Array[]} */
  #begun = [];
  #partial = false;
  damaged = 0;

  /**
   * The packets that are complete now.
   * @param {Uint8Array} bytes
   * @returns {Uint8Array[]}
   */
  push(bytes) {
    let data = this.#rest.length ? join([this.#rest, bytes]) : bytes.slice();
    /** @type {Uint8Array[]} */
    const packets = [];
    for (;;) {
      const start = findPage(data);
      data = data.subarray(start);
      const length = pageLength(data);
      if (length === null || length > data.length) break;
      const page = data.slice(0, length);
      if (isWhole(page)) {
        this.#take(page, packets);
        data = data.subarray(length);
      } else {
        this.damaged++;
        this.#begun = [];
        this.#partial = false;
        data = data.subarray(1);
      }
    }
    this.#rest = data.slice();
    return packets;
  }

  /**
   * @param {Uint8Array} page
   * @param {Uint8Array[]} packets
   */
  #take(page, packets) {
    let skip = false;
    if (!(page[5] & CONTINUED)) this.#begun = [];
    else if (!this.#partial) skip = true; // its beginning was lost
    const table = page.subarray(HEADER, HEADER + page[26]);
    let at = HEADER + page[26];
    let from = at;
    this.#partial = false;
    for (const segment of table) {
      at += segment;
      if (segment === 255) continue;
      if (!skip) packets.push(join([...this.#begun, page.subarray(from, at)]));
      this.#begun = [];
      skip = false;
      from = at;
    }
    if (table.length && table[table.length - 1] === 255 && !skip) {
      this.#begun.push(page.subarray(from, at));
      this.#partial = true;
    }
    if (page[5] & LAST) this.#partial = false;
  }
}

/** @param {Uint8Array} data */
function findPage(data) {
  for (let at = data.indexOf(0x4f); at >= 0; at = data.indexOf(0x4f, at + 1)) {
    const rest = data.subarray(at, at + 4);
    if ([0x4f, 0x67, 0x67, 0x53].slice(0, rest.length).every((byte, i) => rest[i] === byte)) {
      return at;
    }
  }
  return data.length;
}

/** @param {Uint8Array} data */
function pageLength(data) {
  if (data.length < HEADER || data.length < HEADER + data[26]) return null;
  return data.subarray(HEADER, HEADER + data[26]).reduce((a, b) => a + b, HEADER + data[26]);
}

/** @param {Uint8Array} page A copy that may be changed. */
function isWhole(page) {
  const view = new DataView(page.buffer, page.byteOffset, page.byteLength);
  const wanted = view.getUint32(CHECKSUM, true);
  view.setUint32(CHECKSUM, 0, true);
  return page[4] === 0 && checksum(page) === wanted;
}
