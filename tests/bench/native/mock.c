/* An upstream that answers like an OpenAI-compatible engine, fast enough never to be the bottleneck: one thread, epoll.
 *
 *   mock PORT [CONTENT-TYPE OF STREAMS]
 *
 * Port 0 takes a free one. "listening on PORT" is printed as soon as connections are accepted.
 *
 * GET and HEAD: /health, /stats (what was seen so far, with times of CLOCK_MONOTONIC), anything else the list of
 * models. POST, whatever the path, is a completion. What is wanted of it travels in fields of the body that proxies
 * pass on:
 *
 *   "stream": true       server-sent events, else one JSON body of 600 bytes
 *   "max_tokens": N      chunks of a stream (16)
 *   "seed": MS           time between two chunks (0)
 *   "stop": "KNOB"       one of
 *     wait:MS            the head of a stream comes so much later
 *     hang               nothing ever comes
 *     drop               the connection is closed without a byte of an answer
 *     cut:K, rst:K       it is closed, or reset, after K chunks of a stream, or within a whole answer
 *     split:K            each event is written in K pieces
 *     trailer            a trailer follows the stream
 *     closeafter         the connection is closed behind a proper answer, without a word before
 *     untilclose         the body has no length: it ends with the connection
 *     hints              103 Early Hints precede the answer
 *     nocontent          204
 *     gzip               the answer is compressed, whatever the request accepts
 *     err400, err500, ratelimit (429 with retry-after: 7)
 *
 * The text of each chunk is "@" and the time of its sending in ns of CLOCK_MONOTONIC, so that a client on the same
 * machine can tell how long it was under way.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define MAX_EVENTS 512
#define MAX_STEPS 2048 /* chunks that are sent before sockets are looked at again */
#define SEARCHED 65536 /* bytes at either end of a body in which fields are looked for */
#define FIRST_BUFFER 16384
#define MIN_ROOM 8192

struct answer { /* what is asked for in a body */
    int stream, usage, total, cut, rst, split, trailer, closeafter, untilclose, hints;
    int64_t interval_ns, wait_ns;
};

struct conn {
    int fd, dead, want_out;
    int closing; /* to be closed once everything is out */
    char *in;
    size_t in_len, in_cap;
    char *out;
    size_t out_at, out_len, out_cap;
    /* the request that is being read */
    int has_head, is_chunked, is_last;
    size_t head_len, body_len, chunk_at;
    /* the answer that is being given */
    int is_answering, is_head_due, is_paused;
    int is_handled; /* its request has not been taken off the buffer yet */
    int sent;
    struct answer asked;
    int64_t due;
    int heap_at; /* -1: not in the heap */
    struct conn *next_dead;
};

static int epoll_fd, timer_fd, listen_fd;
static struct conn *graveyard; /* freed when no event can mention them any more */
static char stream_type[128] = "text/event-stream; charset=utf-8";

static struct {
    long long accepted, open, requests, active, aborted, last_abort_ns, bytes, chunks;
} seen;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* -- connections by the time at which their next chunk is due */

static struct conn **heap;
static int heap_len, heap_cap;

static void heap_place(int at, struct conn *c) {
    heap[at] = c;
    c->heap_at = at;
}

static void heap_up(int at) {
    struct conn *c = heap[at];
    while (at && heap[(at - 1) / 2]->due > c->due) {
        heap_place(at, heap[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    heap_place(at, c);
}

static void heap_down(int at) {
    struct conn *c = heap[at];
    for (;;) {
        int child = 2 * at + 1;
        if (child + 1 < heap_len && heap[child + 1]->due < heap[child]->due)
            child++;
        if (child >= heap_len || heap[child]->due >= c->due)
            break;
        heap_place(at, heap[child]);
        at = child;
    }
    heap_place(at, c);
}

static void schedule(struct conn *c) {
    if (c->heap_at >= 0)
        return;
    if (heap_len == heap_cap) {
        heap_cap = heap_cap ? 2 * heap_cap : 256;
        heap = realloc(heap, heap_cap * sizeof *heap);
    }
    heap_place(heap_len++, c);
    heap_up(c->heap_at);
}

static void unschedule(struct conn *c) {
    int at = c->heap_at;
    if (at < 0)
        return;
    c->heap_at = -1;
    struct conn *last = heap[--heap_len];
    if (last != c) {
        heap_place(at, last);
        heap_up(at);
        heap_down(last->heap_at);
    }
}

/* -- bytes to a client */

static void hang_up(struct conn *c, int reset) {
    if (c->dead)
        return;
    if (c->is_answering) {
        c->is_answering = 0;
        seen.active--;
        seen.aborted++;
        seen.last_abort_ns = now_ns();
    }
    unschedule(c);
    if (reset) {
        struct linger at_once = {1, 0};
        setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    }
    epoll_ctl(epoll_fd, EPOLL_CTL_DEL, c->fd, 0);
    close(c->fd);
    c->dead = 1;
    seen.open--;
    c->next_dead = graveyard;
    graveyard = c;
}

static void close_when_sent(struct conn *c) {
    if (c->out_len)
        c->closing = 1;
    else
        hang_up(c, 0);
}

static void watch_out(struct conn *c, int on) {
    if (c->want_out == on)
        return;
    c->want_out = on;
    struct epoll_event event = {.events = EPOLLIN | (on ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
}

static void keep(struct conn *c, const char *data, size_t len) {
    if (c->out_at + c->out_len + len > c->out_cap) {
        if (c->out_len)
            memmove(c->out, c->out + c->out_at, c->out_len);
        c->out_at = 0;
        if (c->out_len + len > c->out_cap) {
            c->out_cap = (c->out_len + len) * 2;
            c->out = realloc(c->out, c->out_cap);
        }
    }
    memcpy(c->out + c->out_at + c->out_len, data, len);
    c->out_len += len;
    watch_out(c, 1);
}

/* Returns 0 when everything went out, 1 when some was kept, -1 when the client is gone. */
static int put(struct conn *c, const char *data, size_t len) {
    if (c->dead)
        return -1;
    while (len && !c->out_len) {
        ssize_t took = send(c->fd, data, len, MSG_NOSIGNAL);
        if (took >= 0) {
            data += took;
            len -= took;
            seen.bytes += took;
        } else if (errno == EAGAIN) {
            break;
        } else if (errno != EINTR) {
            hang_up(c, 0);
            return -1;
        }
    }
    if (!len)
        return 0;
    keep(c, data, len);
    return 1;
}

static void writable(struct conn *c) {
    while (c->out_len) {
        ssize_t took = send(c->fd, c->out + c->out_at, c->out_len, MSG_NOSIGNAL);
        if (took < 0) {
            if (errno != EAGAIN && errno != EINTR)
                hang_up(c, 0);
            return;
        }
        c->out_at += took;
        c->out_len -= took;
        seen.bytes += took;
    }
    c->out_at = 0;
    watch_out(c, 0);
    if (c->closing)
        hang_up(c, 0);
    else if (c->is_paused) {
        c->is_paused = 0;
        schedule(c);
    }
}

/* -- whole answers */

#define ID "\"id\":\"chatcmpl-bench0123456789abcdef\""
#define MADE "\"created\":1700000000,\"model\":\"mock-model\""

static const char ANSWER[] =
    "{" ID ",\"object\":\"chat.completion\"," MADE ","
    "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"The quick brown fox jumps over the "
    "lazy "
    "dog while the benchmark keeps on running; this sentence only exists to give the body a realistic size for a short "
    "chat answer, which is somewhere near six hundred bytes in all.\",\"refusal\":null,\"tool_calls\":null},"
    "\"logprobs\":null,\"finish_reason\":\"stop\"}],"
    "\"usage\":{\"prompt_tokens\":42,\"completion_tokens\":48,\"total_tokens\":90,\"prompt_tokens_details\":null},"
    "\"system_fingerprint\":null}";
static const char MODELS[] = "{\"object\":\"list\",\"data\":[{\"id\":\"mock-model\",\"object\":\"model\","
                             "\"created\":1700000000,\"owned_by\":\"bench\"}]}";
static const char HINTS[] = "HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\n\r\n";

static uint32_t crc32_of(const unsigned char *data, size_t len) {
    uint32_t crc = ~0u;
    while (len--) {
        crc ^= *data++;
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? (crc >> 1) ^ 0xEDB88320u : crc >> 1;
    }
    return ~crc;
}

/* gzip with one stored block, so that no library is needed. */
static size_t gzip(const char *data, size_t len, char *into) {
    unsigned char *p = (unsigned char *)into;
    const unsigned char head[] = {0x1f,       0x8b,           8, 0, 0, 0, 0, 0, 0, 255, 1, len & 255, len >> 8,
                                  ~len & 255, ~len >> 8 & 255};
    memcpy(p, head, sizeof head);
    p += sizeof head;
    memcpy(p, data, len);
    p += len;
    uint32_t ends[] = {crc32_of((const unsigned char *)data, len), (uint32_t)len};
    for (int i = 0; i < 8; i++)
        *p++ = ends[i / 4] >> 8 * (i % 4);
    return p - (unsigned char *)into;
}

struct whole {
    const char *status, *headers, *body;
    size_t len;
    int has_length, hides_body;
};

static void reply(struct conn *c, struct whole a) {
    char head[512], length[64] = "";
    if (a.has_length)
        snprintf(length, sizeof length, "content-length: %zu\r\n", a.len);
    int n = snprintf(head, sizeof head, "HTTP/1.1 %s\r\ncontent-type: application/json\r\n%s%s%s\r\n", a.status,
                     a.headers, length, c->is_last ? "connection: close\r\n" : "");
    size_t len = a.hides_body ? 0 : a.len;
    char *both = malloc(n + len); /* one write */
    memcpy(both, head, n);
    memcpy(both + n, a.body, len);
    put(c, both, n + len);
    free(both);
    if (c->is_last && !c->dead)
        close_when_sent(c);
}

static void reply_json(struct conn *c, const char *status, const char *headers, const char *body) {
    reply(c, (struct whole){status, headers, body, strlen(body), 1, 0});
}

static void reply_zipped(struct conn *c) {
    char zipped[sizeof ANSWER + 64];
    size_t len = gzip(ANSWER, sizeof ANSWER - 1, zipped);
    reply(c, (struct whole){"200 OK", "content-encoding: gzip\r\n", zipped, len, 1, 0});
}

/* A whole answer that breaks off in its middle. */
static void reply_half(struct conn *c, int reset) {
    char part[256];
    int n = snprintf(part, sizeof part,
                     "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n%.50s",
                     sizeof ANSWER - 1, ANSWER);
    put(c, part, n);
    hang_up(c, reset);
}

/* -- streams */

static int put_event(struct conn *c, const char *event, size_t len) {
    char framed[1024];
    int n;
    if (c->asked.untilclose)
        n = snprintf(framed, sizeof framed, "%s", event);
    else
        n = snprintf(framed, sizeof framed, "%zx\r\n%s\r\n", len, event);
    int piece = c->asked.split > 1 ? n / c->asked.split + 1 : n, done = 0;
    for (int at = 0; at < n && done >= 0; at += piece)
        done = put(c, framed + at, n - at < piece ? n - at : piece);
    return done;
}

static int put_stream_head(struct conn *c) {
    char head[384];
    const char *framing = c->asked.untilclose ? "connection: close" : "transfer-encoding: chunked";
    int n =
        snprintf(head, sizeof head, "%sHTTP/1.1 200 OK\r\ncontent-type: %s\r\ncache-control: no-cache\r\n%s\r\n\r\n",
                 c->asked.hints ? HINTS : "", stream_type, framing);
    return put(c, head, n);
}

static int put_chunk(struct conn *c) {
    char event[768];
    int n = snprintf(event, sizeof event,
                     "data: {" ID ",\"object\":\"chat.completion.chunk\"," MADE ",\"choices\":[{\"index\":0,"
                     "\"delta\":{%s\"content\":\"@%lld \"},\"logprobs\":null,\"finish_reason\":%s}]}\n\n",
                     c->sent ? "" : "\"role\":\"assistant\",", (long long)now_ns(),
                     c->sent == c->asked.total - 1 ? "\"stop\"" : "null");
    c->sent++;
    seen.chunks++;
    return put_event(c, event, n);
}

/* Usage, [DONE] and the last chunk, in one write as most engines do. */
static int put_end(struct conn *c) {
    char end[1024], usage[512] = "";
    int n = 0, total = c->asked.total, framed = !c->asked.untilclose;
    if (c->asked.usage) {
        int len = snprintf(usage, sizeof usage,
                           "data: {" ID ",\"object\":\"chat.completion.chunk\"," MADE ",\"choices\":[],\"usage\":"
                           "{\"prompt_tokens\":42,\"completion_tokens\":%d,\"total_tokens\":%d}}\n\n",
                           total, total + 42);
        n += framed ? sprintf(end, "%x\r\n%s\r\n", len, usage) : sprintf(end, "%s", usage);
    }
    if (framed)
        n += sprintf(end + n, "e\r\ndata: [DONE]\n\n\r\n0\r\n%s\r\n",
                     c->asked.trailer ? "x-bench-trailer: yes\r\n" : "");
    else
        n += sprintf(end + n, "data: [DONE]\n\n");
    return put(c, end, n);
}

static void next_request(struct conn *c);

static void finish_stream(struct conn *c) {
    c->is_answering = 0;
    seen.active--;
    if (put_end(c) < 0)
        return;
    if (c->is_last || c->asked.closeafter || c->asked.untilclose)
        close_when_sent(c);
    else if (!c->is_handled)
        next_request(c);
}

static void step(struct conn *c, int64_t now) {
    const struct answer *asked = &c->asked;
    if (c->is_head_due) {
        c->is_head_due = 0;
        if (put_stream_head(c) < 0)
            return;
    }
    int breaks_at = asked->cut + asked->rst;
    if (breaks_at && c->sent >= breaks_at) {
        c->is_answering = 0; /* it is we who leave */
        seen.active--;
        hang_up(c, asked->rst > 0);
        return;
    }
    int done = put_chunk(c);
    if (done < 0)
        return;
    if (c->sent >= asked->total && !breaks_at) {
        finish_stream(c);
        return;
    }
    c->due = asked->interval_ns ? c->due + asked->interval_ns : now;
    if (done == 0)
        schedule(c);
    else
        c->is_paused = 1; /* the client is slow: see writable() */
}

static void answer_stream(struct conn *c) {
    int64_t now = now_ns();
    c->sent = 0;
    c->is_answering = c->is_head_due = 1;
    c->is_paused = 0;
    c->due = now + c->asked.wait_ns;
    seen.active++;
    if (c->asked.wait_ns)
        schedule(c);
    else
        step(c, now);
}

/* -- what is asked for */

/* Returns where the value of a field begins, or NULL. `name` has its quotes. */
static const char *find_in(const char *body, size_t len, const char *name) {
    const char *end = body + len, *p = body;
    while ((p = memmem(p, end - p, name, strlen(name)))) {
        p += strlen(name);
        const char *value = p;
        while (value < end && *value == ' ')
            value++;
        if (value >= end || *value++ != ':')
            continue;
        while (value < end && *value == ' ')
            value++;
        return value < end ? value : NULL;
    }
    return NULL;
}

static const char *find(const char *body, size_t len, const char *name) {
    if (len <= 2 * SEARCHED)
        return find_in(body, len, name);
    const char *value = find_in(body, SEARCHED, name);
    return value ? value : find_in(body + len - SEARCHED, SEARCHED, name);
}

static long long number(const char *body, size_t len, const char *name, long long otherwise) {
    const char *value = find(body, len, name);
    return value && *value >= '0' && *value <= '9' ? atoll(value) : otherwise;
}

static void text(const char *body, size_t len, const char *name, char *into, size_t room) {
    const char *value = find(body, len, name), *end = NULL;
    if (value && *value == '[') /* some make a list of it */
        value++;
    if (value && *value == '"')
        end = memchr(value + 1, '"', body + len - value - 1);
    size_t n = end ? (size_t)(end - value - 1) : room;
    if (n < room) {
        memcpy(into, value + 1, n);
        into[n] = 0;
    }
}

static int knob_number(const char *knob, const char *name) {
    size_t n = strlen(name);
    return !strncmp(knob, name, n) && knob[n] == ':' ? atoi(knob + n + 1) : 0;
}

static struct answer read_answer(const char *body, size_t len, const char *knob) {
    const char *stream = find(body, len, "\"stream\"");
    long long total = number(body, len, "\"max_tokens\"", number(body, len, "\"max_completion_tokens\"", 16));
    return (struct answer){
        .stream = stream && *stream == 't',
        .usage = find(body, len, "\"include_usage\"") != NULL,
        .total = total < 1 ? 1 : total,
        .interval_ns = number(body, len, "\"seed\"", 0) * 1000000LL,
        .wait_ns = knob_number(knob, "wait") * 1000000LL,
        .cut = knob_number(knob, "cut"),
        .rst = knob_number(knob, "rst"),
        .split = knob_number(knob, "split"),
        .trailer = !strcmp(knob, "trailer"),
        .closeafter = !strcmp(knob, "closeafter"),
        .untilclose = !strcmp(knob, "untilclose"),
        .hints = !strcmp(knob, "hints"),
    };
}

static void answer_get(struct conn *c, const char *path, int hides_body) {
    char stats[512];
    const char *body = MODELS;
    if (!strncmp(path, "/health", 7))
        body = "{\"status\":\"ok\"}";
    else if (!strncmp(path, "/stats", 6)) {
        seen.requests--;
        snprintf(stats, sizeof stats,
                 "{\"accepted\":%lld,\"open\":%lld,\"requests\":%lld,\"active_streams\":%lld,\"aborted_streams\":%lld,"
                 "\"last_abort_ns\":%lld,\"bytes_out\":%lld,\"chunks\":%lld,\"now_ns\":%lld}",
                 seen.accepted, seen.open, seen.requests, seen.active, seen.aborted, seen.last_abort_ns, seen.bytes,
                 seen.chunks, (long long)now_ns());
        body = stats;
    }
    reply(c, (struct whole){"200 OK", "", body, strlen(body), 1, hides_body});
}

static void answer_whole(struct conn *c, const char *knob) {
    if (c->asked.cut || c->asked.rst) {
        reply_half(c, c->asked.rst > 0);
        return;
    }
    if (c->asked.hints)
        put(c, HINTS, sizeof HINTS - 1);
    if (c->asked.untilclose)
        c->is_last = 1;
    if (!strcmp(knob, "gzip"))
        reply_zipped(c);
    else
        reply(c, (struct whole){"200 OK", "", ANSWER, sizeof ANSWER - 1, !c->asked.untilclose, 0});
    if (c->asked.closeafter && !c->dead)
        close_when_sent(c);
}

static void answer_post(struct conn *c, const char *body, size_t len) {
    char knob[64] = "";
    text(body, len, "\"stop\"", knob, sizeof knob);
    c->asked = read_answer(body, len, knob);
    if (!strcmp(knob, "hang")) {
        c->is_answering = 1;
        seen.active++;
    } else if (!strcmp(knob, "drop"))
        hang_up(c, 0);
    else if (!strcmp(knob, "nocontent"))
        reply(c, (struct whole){"204 No Content", "", "", 0, 0, 0});
    else if (!strcmp(knob, "err500"))
        reply_json(c, "500 Internal Server Error", "",
                   "{\"error\":{\"message\":\"boom\",\"type\":\"server_error\",\"code\":500}}");
    else if (!strcmp(knob, "err400"))
        reply_json(c, "400 Bad Request", "",
                   "{\"error\":{\"message\":\"bad\",\"type\":\"invalid_request_error\",\"code\":400}}");
    else if (!strcmp(knob, "ratelimit"))
        reply_json(c, "429 Too Many Requests", "retry-after: 7\r\n",
                   "{\"error\":{\"message\":\"slow down\",\"type\":\"rate_limit_error\",\"code\":429}}");
    else if (c->asked.stream)
        answer_stream(c);
    else
        answer_whole(c, knob);
}

/* -- requests */

/* Returns where the value of a header begins, or NULL. */
static const char *header(const char *head, size_t len, const char *name) {
    size_t n = strlen(name);
    const char *end = head + len, *p = head;
    while ((p = memchr(p, '\n', end - p))) {
        p++;
        if ((size_t)(end - p) > n && !strncasecmp(p, name, n) && p[n] == ':') {
            p += n + 1;
            while (*p == ' ')
                p++;
            return p;
        }
    }
    return NULL;
}

static int header_is(const struct conn *c, const char *name, const char *value) {
    const char *found = header(c->in, c->head_len, name);
    return found && !strncasecmp(found, value, strlen(value));
}

/* Returns whether the head of a request is there. */
static int read_head(struct conn *c) {
    char *end = memmem(c->in, c->in_len, "\r\n\r\n", 4);
    if (!end)
        return 0;
    c->has_head = 1;
    c->head_len = end - c->in + 4;
    const char *length = header(c->in, c->head_len, "content-length");
    c->body_len = length ? strtoull(length, 0, 10) : 0;
    c->is_chunked = header_is(c, "transfer-encoding", "chunked");
    if (c->is_chunked) {
        c->body_len = 0;
        c->chunk_at = c->head_len;
    }
    char *line_end = memchr(c->in, '\r', c->head_len);
    int is_old = line_end - c->in > 8 && !memcmp(line_end - 8, "HTTP/1.0", 8);
    c->is_last = is_old || header_is(c, "connection", "close");
    if (header(c->in, c->head_len, "expect"))
        put(c, "HTTP/1.1 100 Continue\r\n\r\n", 25);
    return !c->dead;
}

/* Gathers a chunked body behind its head; returns whether it is there as a whole. */
static int gather_chunks(struct conn *c) {
    for (;;) {
        char *size_line = c->in + c->chunk_at, *end = memchr(size_line, '\n', c->in_len - c->chunk_at);
        if (!end)
            return 0;
        size_t size = strtoull(size_line, 0, 16), line = end - size_line + 1;
        if (c->in_len - c->chunk_at < line + size + 2)
            return 0;
        c->chunk_at += line + size + 2;
        if (!size)
            return 1;
        memmove(c->in + c->head_len + c->body_len, size_line + line, size);
        c->body_len += size;
    }
}

static void take_off(struct conn *c, size_t len) {
    memmove(c->in, c->in + len, c->in_len - len);
    c->in_len -= len;
    c->has_head = 0;
    if (c->in_cap > 1 << 20 && c->in_len < SEARCHED) {
        c->in_cap = SEARCHED;
        c->in = realloc(c->in, c->in_cap);
    }
}

static void handle(struct conn *c) {
    seen.requests++;
    c->is_handled = 1;
    if (!strncmp(c->in, "GET ", 4))
        answer_get(c, c->in + 4, 0);
    else if (!strncmp(c->in, "HEAD ", 5))
        answer_get(c, c->in + 5, 1);
    else
        answer_post(c, c->in + c->head_len, c->body_len);
    c->is_handled = 0;
}

static void next_request(struct conn *c) {
    while (!c->dead && !c->is_answering && !c->closing && c->in_len) {
        if (!c->has_head && !read_head(c))
            return;
        if (c->is_chunked ? !gather_chunks(c) : c->in_len - c->head_len < c->body_len)
            return;
        size_t whole = c->is_chunked ? c->chunk_at : c->head_len + c->body_len;
        handle(c);
        if (!c->dead)
            take_off(c, whole);
    }
}

static void readable(struct conn *c) {
    for (;;) {
        if (c->in_cap - c->in_len < MIN_ROOM) {
            c->in_cap *= 2;
            c->in = realloc(c->in, c->in_cap);
        }
        size_t room = c->in_cap - c->in_len;
        ssize_t came = recv(c->fd, c->in + c->in_len, room, 0);
        if (came <= 0) {
            if (came == 0 || (errno != EAGAIN && errno != EINTR))
                hang_up(c, 0);
            break;
        }
        c->in_len += came;
        if ((size_t)came < room)
            break;
    }
    if (!c->dead && !c->is_answering)
        next_request(c);
}

/* -- the loop */

static void accept_all(void) {
    for (;;) {
        int fd = accept4(listen_fd, 0, 0, SOCK_NONBLOCK | SOCK_CLOEXEC), one = 1;
        if (fd < 0)
            return;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct conn *c = calloc(1, sizeof *c);
        c->fd = fd;
        c->heap_at = -1;
        c->in_cap = FIRST_BUFFER;
        c->in = malloc(c->in_cap);
        seen.accepted++;
        seen.open++;
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
    }
}

/* Arms the timer; returns epoll's timeout. */
static int wait_ms(int64_t *armed) {
    if (!heap_len)
        return -1;
    int64_t due = heap[0]->due;
    if (due <= now_ns())
        return 0;
    if (due != *armed) {
        struct itimerspec at = {.it_value = {due / 1000000000LL, due % 1000000000LL}};
        timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &at, 0);
        *armed = due;
    }
    return -1;
}

static void send_due(void) {
    int64_t now = now_ns();
    int steps = heap_len < MAX_STEPS ? heap_len : MAX_STEPS;
    while (steps-- > 0 && heap_len && heap[0]->due <= now) {
        struct conn *c = heap[0];
        unschedule(c);
        step(c, now);
    }
}

static void bury(void) {
    while (graveyard) {
        struct conn *c = graveyard;
        graveyard = c->next_dead;
        free(c->in);
        free(c->out);
        free(c);
    }
}

static void serve(void) {
    struct epoll_event events[MAX_EVENTS];
    int64_t armed = 0;
    for (;;) {
        int n = epoll_wait(epoll_fd, events, MAX_EVENTS, wait_ms(&armed));
        for (int i = 0; i < n; i++) {
            void *about = events[i].data.ptr;
            if (about == &listen_fd)
                accept_all();
            else if (about == &timer_fd) {
                uint64_t ticks;
                armed = read(timer_fd, &ticks, sizeof ticks) < 0 ? armed : 0;
            } else {
                struct conn *c = about;
                if (!c->dead && events[i].events & EPOLLOUT)
                    writable(c);
                if (!c->dead && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
                    readable(c);
            }
        }
        send_due();
        bury();
    }
}

static int listen_on(int port) {
    int one = 1;
    listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(listen_fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    if (bind(listen_fd, (void *)&at, len) || listen(listen_fd, 4096) || getsockname(listen_fd, (void *)&at, &len)) {
        perror("mock: listen");
        return -1;
    }
    return ntohs(at.sin_port);
}

static int usage(FILE *out, int code) {
    fprintf(out, "usage: mock PORT [CONTENT-TYPE OF STREAMS]\n"
                 "An upstream for benchmarks on 127.0.0.1; port 0 takes a free one. mock.c says what it can do.\n");
    return code;
}

int main(int argc, char **argv) {
    if (argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")))
        return usage(stdout, 0);
    char *rest = "";
    long port = argc == 2 || argc == 3 ? strtol(argv[1], &rest, 10) : -1;
    if (port < 0 || port > 65535 || *rest || !*argv[1])
        return usage(stderr, 2);
    if (argc == 3)
        snprintf(stream_type, sizeof stream_type, "%s", argv[2]);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    port = listen_on(port);
    if (port < 0)
        return 1;
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = &listen_fd};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listen_fd, &event);
    event.data.ptr = &timer_fd;
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &event);
    printf("listening on %ld\n", port);
    fflush(stdout);
    serve();
}
