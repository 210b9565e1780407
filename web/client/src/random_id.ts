/** Return 128 random bits as text. Not `crypto.randomUUID`, which browsers provide for https and localhost only. */
export function createRandomId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("")
}
