// A WebSocket that comes back. It knows nothing of the chat: it opens, notices when it is lost, waits, opens again,
// and measures how long the server takes to answer.

const FIRST_DELAY = 600; // milliseconds, as every time in this file
const LONGEST_DELAY = 20_000;
const STABLE_AFTER = 10_000; // a connection that lasted this long makes the delays start from the beginning
const OPEN_WITHIN = 10_000;
const PING_EVERY = 8_000; // a ping that is unanswered when the next one is due: the connection is dead

/** Throw one from `address` when there is no use in trying again. */
export class Refused extends Error {}

/**
 * How long to wait before attempt number `attempt`: twice as long each time, and not at the same moment as everyone
 * else who lost the same server.
 */
export function delayBefore(attempt, random = Math.random) {
  const ceiling = Math.min(LONGEST_DELAY, FIRST_DELAY * 2 ** attempt);
  return ceiling / 2 + random() * (ceiling / 2);
}

export class Connection {
  #hooks;
  #socket = null;
  #turn = 0; // counts attempts; what an earlier attempt still has to say is not listened to
  #failures = 0;
  #timers = new Map();
  #pingSent = null;

  /**
   * `hooks`: `address()` returns the URL (or a promise of it), `opened()` and `received(message)` are the traffic,
   * `changed({name, ...})` is told "connecting", "online" (with `latency`, once it is known), "waiting" (with the
   * `seconds` that are left) and "offline" (with the `reason`: a Refused, or a CloseEvent for which `isFinal` is true).
   */
  constructor(hooks) {
    this.#hooks = hooks;
    this.wake = this.wake.bind(this);
  }

  start() {
    addEventListener("online", this.wake);
    document.addEventListener("visibilitychange", this.wake);
    this.#open();
  }

  stop() {
    removeEventListener("online", this.wake);
    document.removeEventListener("visibilitychange", this.wake);
    this.#drop();
  }

  /** Whether `message` was handed to an open socket; it can still be lost on the way. */
  send(message) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return false;
    this.#socket.send(JSON.stringify(message));
    return true;
  }

  /** The other side has taken us in: from here on we are online. */
  ready() {
    this.#cancel("open");
    this.#after("stable", STABLE_AFTER, () => (this.#failures = 0));
    this.#hooks.changed({ name: "online" });
    this.#ping();
  }

  /** Stop waiting, if we do: the user asks for it, the network is back, or the page is looked at again. */
  wake() {
    if (this.#timers.has("retry") && !document.hidden) this.#open();
  }

  async #open() {
    this.#drop();
    const turn = this.#turn;
    this.#hooks.changed({ name: "connecting" });
    try {
      const address = await this.#hooks.address(AbortSignal.timeout(OPEN_WITHIN));
      if (turn !== this.#turn) return;
      this.#attach(new WebSocket(address));
    } catch (error) {
      if (turn !== this.#turn) return;
      if (error instanceof Refused) this.#end(error);
      else this.#wait();
    }
  }

  #attach(socket) {
    this.#socket = socket;
    this.#after("open", OPEN_WITHIN, () => this.#wait());
    socket.onopen = () => this.#hooks.opened();
    socket.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      if (message.type === "pong") this.#pong(message.t);
      else this.#hooks.received(message);
    };
    socket.onclose = (event) => (this.#hooks.isFinal?.(event) ? this.#end(event) : this.#wait());
  }

  /** Forget the socket and every timer. A dead peer does not answer a Close, so nobody waits for that. */
  #drop() {
    this.#turn += 1;
    for (const timer of this.#timers.values()) clearTimeout(timer);
    this.#timers.clear();
    this.#pingSent = null;
    if (!this.#socket) return;
    this.#socket.onopen = this.#socket.onmessage = this.#socket.onclose = null;
    this.#socket.close();
    this.#socket = null;
  }

  #wait() {
    this.#drop();
    const until = performance.now() + delayBefore(this.#failures++);
    const tick = () => {
      const left = until - performance.now();
      if (left <= 0) return this.#open();
      this.#hooks.changed({ name: "waiting", seconds: Math.ceil(left / 1000) });
      this.#after("retry", Math.min(left, 1000), tick);
    };
    tick();
  }

  #end(reason) {
    this.stop();
    this.#hooks.changed({ name: "offline", reason });
  }

  #ping() {
    if (this.#pingSent !== null) return this.#wait();
    this.#pingSent = performance.now();
    this.send({ type: "ping", t: this.#pingSent });
    this.#after("ping", PING_EVERY, () => this.#ping());
  }

  #pong(sent) {
    if (sent !== this.#pingSent) return;
    this.#pingSent = null;
    this.#hooks.changed({ name: "online", latency: Math.max(1, Math.round(performance.now() - sent)) });
  }

  #after(name, delay, action) {
    this.#cancel(name);
    const timer = setTimeout(() => {
      this.#timers.delete(name);
      action();
    }, delay);
    this.#timers.set(name, timer);
  }

  #cancel(name) {
    clearTimeout(this.#timers.get(name));
    this.#timers.delete(name);
  }
}
