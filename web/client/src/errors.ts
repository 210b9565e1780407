/** What went wrong, for programs. */
export type StreamErrorCode =
  /** The server refuses: `status` and `detail` say why. The answer would be the same next time. */
  | "refused"
  /** Who asks is not known, or no longer: sign in again. */
  | "unauthenticated"
  /** The server closed the stream for good. */
  | "closed_by_server"
  /** No connection could be made for too long. */
  | "lost"
  /** What answered is no stream: a proxy's page, or another server. */
  | "not_a_stream"
  /** The stream was closed by its user. */
  | "closed"

/** Why a stream cannot go on, or why an attempt to connect came to nothing. Its text is meant for people. */
export class StreamError extends Error {
  override readonly name = "StreamError"
  readonly code: StreamErrorCode
  /** HTTP status, or the code of a close; `null` where there was none. */
  readonly status: number | null

  constructor(code: StreamErrorCode, message: string, status: number | null = null, options?: ErrorOptions) {
    super(message, options)
    this.code = code
    this.status = status
  }
}
