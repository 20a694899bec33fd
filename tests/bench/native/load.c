/* A closed loop of requests to an HTTP/1.1 server on this machine: one thread, epoll.
 *
 *   load PORT PATH [-b BODYFILE] [-c CONNECTIONS] (-n REQUESTS | -d SECONDS) [-w WARMUP] [-s] [-r RAMP_MS] [-H 'K:
 * V']...
 *
 *   -b   a POST with this body, else a GET
 *   -w   requests at the beginning that are left out of the statistics
 *   -s   the answers are event streams of the mock: their chunks are counted, and how long each was under way
 *   -r   the connections begin their first requests spread over so much time
 *
 * Prints one JSON object; times are in microseconds. "sent" and "all_events" count what the statistics leave out, too.
 * Exit code 1 if nothing was answered.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
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
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MAX_EVENTS 512
#define MAX_FAILURES 1000

struct samples {
    int64_t *ns;
    size_t len, cap;
};

enum phase { CONNECTING, HEAD, BODY };
enum frame { SIZE, DATA, DATA_END, TRAILER };

struct conn {
    int fd, want_out, is_counted, is_reused;
    enum phase phase;
    size_t written;
    int64_t starts_at, asked_at, first_at, last_at;
    int is_done; /* [DONE] was seen */
    /* the head of the answer */
    char head[65536];
    size_t head_len;
    int status, is_chunked, is_last;
    long long length, got;
    /* a chunked body */
    enum frame frame;
    long long frame_left;
    char frame_line[32];
    size_t frame_line_len;
    /* a line of an event stream */
    char line[8192];
    size_t line_len;
};

static int epoll_fd, port, connections = 1, is_stream, ramp_ms, active;
static long requests, warmup;
static double seconds;
static char *request;
static size_t request_len;

static int64_t begun_at, ended_at, stop_at;
static long sent, finished, errors, truncated, reconnects, no_done, bad_status, all_events, events, reads;
static long long bytes;
static int last_bad_status;
static struct samples latency, ttft, relay, gap;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* -- statistics */

static void note(struct samples *to, int64_t ns) {
    if (to->len == to->cap) {
        to->cap = to->cap ? to->cap * 2 : 65536;
        to->ns = realloc(to->ns, to->cap * sizeof *to->ns);
    }
    to->ns[to->len++] = ns;
}

static int by_size(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static double quantile_us(const struct samples *of, double share) {
    return of->ns[(size_t)(share * (of->len - 1) + 0.5)] / 1000.0;
}

static void print_samples(const char *name, struct samples *of) {
    if (!of->len)
        return;
    qsort(of->ns, of->len, sizeof *of->ns, by_size);
    printf(",\"%s_p50\":%.1f,\"%s_p90\":%.1f,\"%s_p99\":%.1f,\"%s_max\":%.1f", name, quantile_us(of, .5), name,
           quantile_us(of, .9), name, quantile_us(of, .99), name, quantile_us(of, 1));
}

static void print_result(void) {
    double elapsed = ended_at > begun_at ? (ended_at - begun_at) / 1e9 : 1e-9;
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double cpu = used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
    printf(
        "{\"sent\":%ld,\"requests\":%ld,\"ok\":%zu,\"errors\":%ld,\"truncated\":%ld,\"bad_status\":%ld,\"last_bad\":%d,"
        "\"no_done\":%ld,\"reconnects\":%ld,\"elapsed\":%.6f,\"rps\":%.3f,\"all_events\":%ld,\"events\":%ld,"
        "\"events_per_s\":%.3f,\"bytes\":%lld,\"reads\":%ld,\"client_cpu\":%.4f",
        sent, finished, latency.len, errors, truncated, bad_status, last_bad_status, no_done, reconnects, elapsed,
        latency.len / elapsed, all_events, events, events / elapsed, bytes, reads, cpu);
    print_samples("lat", &latency);
    print_samples("ttft", &ttft);
    print_samples("relay", &relay);
    print_samples("gap", &gap);
    printf("}\n");
}

/* -- connections and requests */

static void watch_out(struct conn *c, int on) {
    if (c->want_out == on)
        return;
    c->want_out = on;
    struct epoll_event event = {.events = EPOLLIN | (on ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
}

static void dial(struct conn *c) {
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (connect(c->fd, (void *)&to, sizeof to) && errno != EINPROGRESS) {
        perror("load: connect");
        exit(1);
    }
    c->phase = CONNECTING;
    c->is_reused = 0;
    c->want_out = 1;
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT, .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event);
}

static void drop(struct conn *c) {
    epoll_ctl(epoll_fd, EPOLL_CTL_DEL, c->fd, 0);
    close(c->fd);
    c->fd = -1;
}

static void write_on(struct conn *c) {
    while (c->written < request_len) {
        ssize_t took = send(c->fd, request + c->written, request_len - c->written, MSG_NOSIGNAL);
        if (took > 0)
            c->written += took;
        else if (took == 0 || errno != EINTR) { /* an error shows in the next read */
            watch_out(c, took < 0 && errno == EAGAIN);
            return;
        }
    }
    watch_out(c, 0);
}

static int is_enough(int64_t now) {
    return (requests && sent >= requests + warmup) || (seconds && stop_at && now >= stop_at);
}

static void ask(struct conn *c) {
    int64_t now = now_ns();
    if (is_enough(now)) {
        if (c->fd >= 0)
            drop(c);
        active--;
        return;
    }
    c->is_counted = sent++ >= warmup;
    if (c->is_counted && !begun_at) {
        begun_at = now;
        stop_at = seconds ? now + (int64_t)(seconds * 1e9) : 0;
    }
    c->asked_at = now;
    c->first_at = c->last_at = 0;
    c->written = c->head_len = c->line_len = c->frame_line_len = 0;
    c->is_done = c->is_last = c->is_chunked = 0;
    c->length = -1;
    c->got = 0;
    c->frame = SIZE;
    if (c->fd < 0) {
        dial(c);
        return;
    }
    c->is_reused = 1;
    c->phase = HEAD;
    write_on(c);
}

static void fail(struct conn *c) {
    if (c->is_counted) {
        errors++;
        ended_at = now_ns();
    }
    if (errors > MAX_FAILURES) {
        fprintf(stderr, "load: too many requests fail\n");
        exit(1);
    }
    ask(c);
}

static void finish(struct conn *c, int is_whole) {
    int64_t now = now_ns();
    if (c->is_counted) {
        ended_at = now;
        finished++;
        if (c->status != 200) {
            bad_status++;
            last_bad_status = c->status;
        } else if (!is_whole)
            truncated++;
        else {
            note(&latency, now - c->asked_at);
            no_done += is_stream && !c->is_done;
        }
    }
    ask(c);
}

/* The server closed the connection. */
static void lost(struct conn *c) {
    int was_idle = c->is_reused && c->phase == HEAD && !c->head_len;
    drop(c);
    if (c->phase == BODY)
        finish(c, !c->is_chunked && c->length < 0);
    else if (was_idle) { /* in the moment in which it was used again */
        reconnects++;
        sent--;
        ask(c);
    } else
        fail(c);
}

/* -- answers */

static void read_line(struct conn *c, int64_t now) {
    if (c->line_len < 6 || memcmp(c->line, "data:", 5))
        return;
    if (memmem(c->line, c->line_len, "[DONE]", 6)) {
        c->is_done = 1;
        return;
    }
    c->line[c->line_len] = 0;
    char *stamp = memmem(c->line, c->line_len, "\"@", 2);
    if (!stamp)
        return;
    all_events++;
    if (!c->is_counted)
        return;
    events++;
    note(&relay, now - atoll(stamp + 2));
    if (c->first_at)
        note(&gap, now - c->last_at);
    else {
        c->first_at = now;
        note(&ttft, now - c->asked_at);
    }
    c->last_at = now;
}

static void take_body(struct conn *c, const char *data, size_t len, int64_t now) {
    if (c->is_counted)
        bytes += len;
    if (!is_stream)
        return;
    while (len) {
        const char *end = memchr(data, '\n', len);
        size_t n = end ? (size_t)(end - data) : len;
        if (c->line_len + n < sizeof c->line - 1) {
            memcpy(c->line + c->line_len, data, n);
            c->line_len += n;
        }
        if (!end)
            return;
        read_line(c, now);
        c->line_len = 0;
        data = end + 1;
        len -= n + 1;
    }
}

/* Takes a line of the framing; returns how many bytes, and 0 in `is_line` if it goes on. */
static size_t take_frame_line(struct conn *c, const char *data, size_t len, int *is_line) {
    const char *end = memchr(data, '\n', len);
    size_t n = end ? (size_t)(end - data + 1) : len;
    if (c->frame_line_len + n < sizeof c->frame_line) {
        memcpy(c->frame_line + c->frame_line_len, data, n);
        c->frame_line[c->frame_line_len + n] = 0;
    }
    c->frame_line_len += n;
    *is_line = end != NULL;
    return n;
}

/* Returns whether the answer is complete. */
static int take_chunked(struct conn *c, const char *data, size_t len, int64_t now) {
    while (len) {
        size_t n;
        if (c->frame == SIZE || c->frame == TRAILER) {
            int is_line;
            n = take_frame_line(c, data, len, &is_line);
            if (!is_line)
                return 0;
            size_t line_len = c->frame_line_len;
            c->frame_line_len = 0;
            if (c->frame == TRAILER) {
                if (line_len <= 2)
                    return 1;
            } else {
                c->frame_left = strtoll(c->frame_line, 0, 16);
                c->frame = c->frame_left ? DATA : TRAILER;
            }
        } else {
            n = len < (size_t)c->frame_left ? len : (size_t)c->frame_left;
            if (c->frame == DATA)
                take_body(c, data, n, now);
            c->frame_left -= n;
            if (!c->frame_left) {
                c->frame_left = 2;
                c->frame = c->frame == DATA ? DATA_END : SIZE;
            }
        }
        data += n;
        len -= n;
    }
    return 0;
}

/* Returns whether the answer is complete. */
static int take(struct conn *c, const char *data, size_t len, int64_t now) {
    if (c->is_chunked)
        return take_chunked(c, data, len, now);
    take_body(c, data, len, now);
    c->got += len;
    return c->length >= 0 && c->got >= c->length;
}

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

/* Returns the length of the head if it is complete, else 0; takes those with status 1xx away. */
static size_t read_head(struct conn *c) {
    for (;;) {
        char *end = memmem(c->head, c->head_len, "\r\n\r\n", 4);
        if (!end)
            return 0;
        size_t len = end - c->head + 4;
        c->status = atoi(c->head + 9);
        if (c->status >= 200)
            return len;
        memmove(c->head, c->head + len, c->head_len - len);
        c->head_len -= len;
    }
}

static void read_framing(struct conn *c, size_t len) {
    const char *value = header(c->head, len, "content-length");
    c->length = value ? atoll(value) : -1;
    value = header(c->head, len, "transfer-encoding");
    c->is_chunked = value && !strncasecmp(value, "chunked", 7);
    value = header(c->head, len, "connection");
    c->is_last = value && !strncasecmp(value, "close", 5);
}

static void readable(struct conn *c) {
    static char buffer[262144];
    for (;;) {
        size_t room = c->phase == HEAD ? sizeof c->head - c->head_len : sizeof buffer, rest;
        ssize_t came = room ? recv(c->fd, buffer, room, 0) : 0;
        if (came < 0 && errno == EAGAIN)
            return;
        if (came < 0 && errno == EINTR)
            continue;
        if (came <= 0) {
            lost(c);
            return;
        }
        int64_t now = now_ns();
        reads++;
        rest = came;
        if (c->phase == HEAD) {
            memcpy(c->head + c->head_len, buffer, came);
            c->head_len += came;
            size_t len = read_head(c);
            if (!len) {
                if ((size_t)came < room)
                    return;
                continue;
            }
            read_framing(c, len);
            c->phase = BODY;
            rest = c->head_len - len;
        }
        if (take(c, buffer + came - rest, rest, now)) {
            if (c->is_last)
                drop(c);
            finish(c, 1);
            return;
        }
        if ((size_t)came < room)
            return;
    }
}

static void connected(struct conn *c, uint32_t happened) {
    int error = 0;
    socklen_t len = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &len);
    if (error) {
        drop(c);
        fail(c);
    } else if (happened & EPOLLOUT)
        c->phase = HEAD;
}

static void happen(struct conn *c, uint32_t happened) {
    if (c->fd >= 0 && c->phase == CONNECTING)
        connected(c, happened);
    if (c->fd < 0 || c->phase == CONNECTING)
        return;
    if (happened & EPOLLOUT)
        write_on(c);
    if (happened & (EPOLLIN | EPOLLHUP | EPOLLERR))
        readable(c);
}

/* -- the run */

static void run(void) {
    struct conn *all = calloc(connections, sizeof *all);
    struct epoll_event happened[MAX_EVENTS];
    int started = 0;
    int64_t begin = now_ns();
    for (int i = 0; i < connections; i++) {
        all[i].fd = -1;
        all[i].starts_at = begin + (int64_t)ramp_ms * 1000000LL * i / connections;
    }
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    active = connections;
    while (active) {
        int64_t now = now_ns();
        while (started < connections && all[started].starts_at <= now)
            ask(&all[started++]);
        int n = epoll_wait(epoll_fd, happened, MAX_EVENTS, started < connections ? 1 : 1000);
        for (int i = 0; i < n; i++)
            happen(happened[i].data.ptr, happened[i].events);
    }
}

static char *read_file(const char *path, size_t *len) {
    struct stat about;
    int fd = open(path, O_RDONLY);
    if (fd < 0 || fstat(fd, &about)) {
        perror(path);
        exit(1);
    }
    char *data = malloc(about.st_size + 1);
    for (*len = 0; (off_t)*len < about.st_size;) {
        ssize_t got = read(fd, data + *len, about.st_size - *len);
        if (got <= 0)
            break;
        *len += got;
    }
    close(fd);
    return data;
}

static void write_request(const char *path, const char *body_file, const char *headers) {
    size_t len = 0;
    char *body = body_file ? read_file(body_file, &len) : NULL;
    request = malloc(len + strlen(path) + strlen(headers) + 512);
    request_len = sprintf(request, "%s %s HTTP/1.1\r\nhost: 127.0.0.1:%d\r\nuser-agent: bench\r\naccept: */*\r\n%s",
                          body ? "POST" : "GET", path, port, headers);
    if (body)
        request_len += sprintf(request + request_len, "content-type: application/json\r\ncontent-length: %zu\r\n", len);
    request_len += sprintf(request + request_len, "\r\n");
    if (body)
        memcpy(request + request_len, body, len);
    request_len += len;
    free(body);
}

static int usage(FILE *out, int code) {
    fprintf(out,
            "usage: load PORT PATH [-b BODYFILE] [-c CONNECTIONS] (-n REQUESTS | -d SECONDS) [-w WARMUP] [-s]\n"
            "            [-r RAMP_MS] [-H 'NAME: VALUE']...\n"
            "Sends requests to 127.0.0.1:PORT and prints what was measured as JSON. load.c explains the options.\n");
    return code;
}

/* Returns a whole number of at least `least`, and -1 for anything else. */
static long number(const char *text, long least) {
    char *rest;
    errno = 0;
    long found = strtol(text, &rest, 10);
    return rest == text || *rest || errno || found < least || found > INT_MAX ? -1 : found;
}

/* Returns a number of seconds above 0 and up to a day, and -1 for anything else, "nan" included. */
static double duration(const char *text) {
    char *rest;
    double found = strtod(text, &rest);
    return rest != text && !*rest && found > 0 && found <= 86400 ? found : -1;
}

int main(int argc, char **argv) {
    char *body_file = NULL, headers[8192] = "";
    int option;
    if (argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")))
        return usage(stdout, 0);
    port = argc > 2 ? number(argv[1], 1) : -1;
    optind = 3;
    while (port > 0 && (option = getopt(argc, argv, "b:c:n:d:sr:w:H:")) != -1)
        switch (option) {
        case 'b':
            body_file = optarg;
            break;
        case 'c':
            connections = number(optarg, 1);
            break;
        case 'n':
            requests = number(optarg, 1);
            break;
        case 'd':
            seconds = duration(optarg);
            break;
        case 's':
            is_stream = 1;
            break;
        case 'r':
            ramp_ms = number(optarg, 0);
            break;
        case 'w':
            warmup = number(optarg, 0);
            break;
        case 'H':
            strncat(headers, optarg, sizeof headers - strlen(headers) - 3);
            strcat(headers, "\r\n");
            break;
        default:
            return usage(stderr, 2);
        }
    int is_wrong = connections < 0 || requests < 0 || seconds < 0 || ramp_ms < 0 || warmup < 0;
    if (port < 1 || port > 65535 || is_wrong || (!requests && seconds == 0) || optind != argc)
        return usage(stderr, 2);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    write_request(argv[2], body_file, headers);
    run();
    print_result();
    if (!finished) {
        fprintf(stderr, "load: nothing was answered\n");
        return 1;
    }
    return 0;
}
