/** Calls back at once, then at most once per interval, and always after the last request. Not by animation frames: hidden pages have none. */
export class Throttle {
  readonly #callback: () => number
  #timer: ReturnType<typeof setTimeout> | null = null
  #isRequested = false

  /** @param callback returns the milliseconds until it may be called again */
  constructor(callback: () => number) {
    this.#callback = callback
  }

  request(): void {
    this.#isRequested = true
    if (this.#timer === null) this.#run()
  }

  cancel(): void {
    if (this.#timer !== null) clearTimeout(this.#timer)
    this.#timer = null
    this.#isRequested = false
  }

  #run(): void {
    this.#timer = null
    if (!this.#isRequested) return
    this.#isRequested = false
    this.#timer = setTimeout(() => this.#run(), this.#callback())
  }
}
