import assert from "node:assert/strict";
import test from "node:test";

import { PageReader, PageWriter, checksum } from "./ogg.js";

const packet = (length, seed = 1) => Uint8Array.from({ length }, (_, i) => (i * 7 + seed) & 255);
const join = (pages) => Uint8Array.from(pages.flatMap((page) => [...page]));

test("the checksum is that of Ogg: polynomial 0x04c11db7, from zero, not reflected", () => {
  assert.equal(checksum(new TextEncoder().encode("123456789")), 0x89a1897f);
});

test("packets of all lengths around the segments' come back, however the bytes are cut", () => {
  const writer = new PageWriter(7);
  const packets = [0, 1, 254, 255, 256, 509, 510, 511, 4000].map(packet);
  const bytes = join(packets.map((one, i) => writer.page(one, i)));
  for (const piece of [1, 13, 255, 100000]) {
    const reader = new PageReader();
    const got = [];
    for (let at = 0; at < bytes.length; at += piece) {
      got.push(...reader.push(bytes.subarray(at, at + piece)));
    }
    assert.deepEqual(got, packets);
    assert.equal(reader.damaged, 0);
  }
});

test("a stream begins with the head on a page of its own, then the tags", () => {
  const head = packet(19);
  const bytes = new PageWriter(0xffffffff).headers(head, "me");
  assert.equal(bytes[5], 2);
  assert.deepEqual([...bytes.subarray(14, 18)], [255, 255, 255, 255]);
  const [first, tags] = new PageReader().push(bytes);
  assert.deepEqual(first, head);
  assert.equal(new TextDecoder().decode(tags), "OpusTags\x02\0\0\0me\0\0\0\0");
});

test("a damaged page is left out, and the next is found", () => {
  const writer = new PageWriter(7);
  const pages = [packet(40, 1), packet(40, 2), packet(40, 3)].map((one, i) => writer.page(one, i));
  pages[1][50] ^= 1;
  const reader = new PageReader();
  assert.deepEqual(reader.push(join([packet(9), ...pages])), [packet(40, 1), packet(40, 3)]);
  assert.equal(reader.damaged, 1);
});

test("a packet goes on over pages; without its beginning it is left out", () => {
  const whole = [packet(255, 1), packet(10, 2)];
  const page = (body, flags, segments) => {
    const made = new PageWriter(1).page(body, 0, flags);
    if (segments === 1) {
      // The same page without the segment that ends the packet.
      const cut = Uint8Array.from([...made.subarray(0, 26), 1, 255, ...body]);
      cut.fill(0, 22, 26);
      new DataView(cut.buffer).setUint32(22, checksum(cut), true);
      return cut;
    }
    return made;
  };
  const first = page(whole[0], 0, 1);
  const second = page(whole[1], 1);
  assert.deepEqual(new PageReader().push(join([first, second])), [join(whole)]);
  assert.deepEqual(new PageReader().push(second), []);
});
