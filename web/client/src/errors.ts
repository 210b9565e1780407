/** What went wrong. */
export type StreamErrorCode =
  /** The server refused the request; `status` and `message` have the reason. Another attempt would be refused, too. */
  | "refused"
  /** The credential is missing, invalid or expired. The user has to sign in. */
  | "unauthenticated"
  /** The server closed the stream and asked not to reconnect. */
  | "closed_by_server"
  /** No connection could be made for too long. */
  | "lost"
  /** The response is not an event stream: it comes from a proxy, or from another server. */
  | "not_a_stream"
  /** The stream was closed by the caller. */
  | "closed"

/** Why a stream failed, or why an attempt to connect failed. The message can be shown to users. */
export class StreamError extends Error {
  override readonly name = "StreamError"
  readonly code: StreamErrorCode
  /** HTTP status or WebSocket close code; `null` if there was none. */
  readonly status: number | null

  constructor(code: StreamErrorCode, message: string, status: number | null = null, options?: ErrorOptions) {
    super(message, options)
    this.code = code
    this.status = status
  }
}
