/* Preloaded into a process by tests: the wall clock, moved by what a file says (seconds, text).
 *
 * libfaketime does two things that a test of wall clocks must not do. It cannot start an Envoy: it
 * wraps poll(), which tcmalloc calls while it sets itself up, looks symbols up there, which
 * allocates, and waits for ever for tcmalloc's lock. And it wraps waits: a step makes threads that
 * wait on a condition or a semaphore wait longer or shorter, so answers from gRPC came up to two
 * seconds late after a step, and certificates of six seconds expired. This allocates nothing, looks
 * nothing up and wraps nothing but the wall clock. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long offset(void) {
    const char *path = getenv("TEST_WALL_CLOCK");
    char text[32];
    long got = 0;
    int file;
    if (path == NULL) return 0;
    file = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    got = syscall(SYS_read, file, text, sizeof text - 1);
    syscall(SYS_close, file);
    if (got <= 0) return 0;
    text[got] = 0;
    return strtol(text, NULL, 10);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = (int)syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += offset();
    return failed;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &exact)) return -1;
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *into) {
    struct timespec exact;
    if (clock_gettime(CLOCK_REALTIME, &exact)) return -1;
    if (into != NULL) *into = exact.tv_sec;
    return exact.tv_sec;
}
