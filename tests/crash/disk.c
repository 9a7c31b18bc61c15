/* A disk that remembers what was asked of it, and can fail: loaded before libc (LD_PRELOAD) into the service.
 *
 * It watches the files of DISK_DIR whose names begin with "state.db", the store's, and that folder itself.
 *
 *   DISK_JOURNAL  a file to which every write, truncation, creation, renaming, removal and sync of these is appended, in
 *                 the order in which they were made. tests/it/power.rs makes of it what a power cut could leave.
 *   FAIL_AT       the k-th write, truncation or sync of these fails with FAIL_ERRNO, once, having done nothing.
 *   FAIL_COUNT    a file that tells, when the process ends in order, how many there were.
 *
 * The -shm file is mapped, never synced, and means nothing after a power cut: it is not watched. SQLite is built without
 * pread and pwrite, so a write's place is the file's own. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define FDS 65536
static char *names[FDS]; /* of watched files; "" is the folder */
static char folder[4096];
static size_t folder_length;
static int journal = -1;
static long fail_at, count;
static int fail_errno;
static uint64_t syncs;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) ((__typeof__(&name))real(#name))
static void *real(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) abort();
    return found;
}

__attribute__((constructor)) static void begin(void) {
    const char *dir = getenv("DISK_DIR"), *to = getenv("DISK_JOURNAL");
    if (!dir) return;
    folder_length = strlen(dir);
    if (folder_length >= sizeof folder) abort();
    strcpy(folder, dir);
    if (to) {
        journal = REAL(open)(to, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (journal < 0) abort();
    }
    if (getenv("FAIL_AT")) fail_at = atol(getenv("FAIL_AT"));
    if (getenv("FAIL_ERRNO")) fail_errno = atoi(getenv("FAIL_ERRNO"));
}

__attribute__((destructor)) static void end(void) {
    const char *to = getenv("FAIL_COUNT");
    if (!to) return;
    FILE *file = fopen(to, "w");
    if (!file) return;
    fprintf(file, "%ld\n", count);
    fclose(file);
}

/* The name below the folder, or NULL if it is not watched. */
static const char *watched(const char *path) {
    if (!folder_length || !path || strncmp(path, folder, folder_length)) return NULL;
    path += folder_length;
    if (!*path || !strcmp(path, "/")) return "";
    if (*path != '/') return NULL;
    path++;
    if (strncmp(path, "state.db", 8) || strchr(path, '/')) return NULL;
    size_t length = strlen(path);
    return length > 4 && !strcmp(path + length - 4, "-shm") ? NULL : path;
}

static const char *name_of(int fd) { return fd >= 0 && fd < FDS ? names[fd] : NULL; }

/* op, length of the name, name, a number, length of the data, data; in one piece, as another process may write too. */
static void note(char op, const char *name, uint64_t number, const void *data, uint32_t length) {
    if (journal < 0) return;
    uint8_t head[2] = {(uint8_t)op, (uint8_t)strlen(name)};
    struct iovec parts[5] = {{head, 2}, {(void *)name, head[1]}, {&number, 8}, {&length, 4}, {(void *)data, length}};
    ssize_t all = 14 + head[1] + (ssize_t)length;
    if (REAL(writev)(journal, parts, 5) != all) abort();
}

/* Whether this is the one that fails. */
static int fails(void) {
    count++;
    if (count != fail_at) return 0;
    errno = fail_errno;
    return 1;
}

static int opened(int fd, const char *path, int flags, int was_there) {
    const char *name = watched(path);
    if (fd < 0 || fd >= FDS || !name) return fd;
    pthread_mutex_lock(&lock);
    free(names[fd]);
    names[fd] = strdup(name);
    if (*name && flags & O_CREAT && !was_there) note('C', name, 0, NULL, 0);
    if (*name && flags & O_TRUNC && was_there) note('T', name, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    return fd;
}

#define OPEN(function)                                                                                                 \
    int function(const char *path, int flags, ...) {                                                                   \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                                        \
        va_end(rest);                                                                                                  \
        int was_there = watched(path) && !access(path, F_OK);                                                          \
        return opened(REAL(function)(path, flags, mode), path, flags, was_there);                                      \
    }
OPEN(open)
OPEN(open64)

int close(int fd) {
    if (name_of(fd)) {
        pthread_mutex_lock(&lock);
        free(names[fd]);
        names[fd] = NULL;
        pthread_mutex_unlock(&lock);
    }
    return REAL(close)(fd);
}

ssize_t write(int fd, const void *data, size_t length) {
    if (!name_of(fd)) return REAL(write)(fd, data, length);
    pthread_mutex_lock(&lock);
    off_t at = lseek(fd, 0, SEEK_CUR);
    ssize_t written = fails() ? -1 : REAL(write)(fd, data, length);
    if (written > 0) note('W', names[fd], (uint64_t)at, data, (uint32_t)written);
    pthread_mutex_unlock(&lock);
    return written;
}

#define PWRITE(function, offset_t)                                                                                     \
    ssize_t function(int fd, const void *data, size_t length, offset_t at) {                                           \
        if (!name_of(fd)) return REAL(function)(fd, data, length, at);                                                 \
        pthread_mutex_lock(&lock);                                                                                     \
        ssize_t written = fails() ? -1 : REAL(function)(fd, data, length, at);                                         \
        if (written > 0) note('W', names[fd], (uint64_t)at, data, (uint32_t)written);                                  \
        pthread_mutex_unlock(&lock);                                                                                   \
        return written;                                                                                                \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

/* Nobody writes the store so; it would go unnoticed. */
ssize_t writev(int fd, const struct iovec *parts, int number) {
    if (name_of(fd)) abort();
    return REAL(writev)(fd, parts, number);
}

#define TRUNCATE(function, offset_t)                                                                                   \
    int function(int fd, offset_t size) {                                                                              \
        if (!name_of(fd)) return REAL(function)(fd, size);                                                             \
        pthread_mutex_lock(&lock);                                                                                     \
        int done = fails() ? -1 : REAL(function)(fd, size);                                                            \
        if (!done) note('T', names[fd], (uint64_t)size, NULL, 0);                                                      \
        pthread_mutex_unlock(&lock);                                                                                   \
        return done;                                                                                                   \
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

/* What was written before it began is on the disk when it has ended; what is written meanwhile may be. */
#define SYNC(function)                                                                                                 \
    int function(int fd) {                                                                                             \
        if (!name_of(fd)) return REAL(function)(fd);                                                                   \
        pthread_mutex_lock(&lock);                                                                                     \
        int failed = fails();                                                                                          \
        uint64_t id = ((uint64_t)getpid() << 32) + ++syncs;                                                            \
        char *name = strdup(names[fd]);                                                                                \
        if (!failed) note('B', name, id, NULL, 0);                                                                     \
        pthread_mutex_unlock(&lock);                                                                                   \
        int done = failed ? -1 : REAL(function)(fd);                                                                   \
        pthread_mutex_lock(&lock);                                                                                     \
        if (!done) note('E', name, id, NULL, 0);                                                                       \
        pthread_mutex_unlock(&lock);                                                                                   \
        free(name);                                                                                                    \
        if (failed) errno = fail_errno;                                                                                \
        return done;                                                                                                   \
    }
SYNC(fsync)
SYNC(fdatasync)

int rename(const char *from, const char *to) {
    const char *name = watched(from), *other = watched(to);
    pthread_mutex_lock(&lock);
    int done = REAL(rename)(from, to);
    if (!done && name && other) note('R', name, 0, other, (uint32_t)strlen(other));
    pthread_mutex_unlock(&lock);
    return done;
}

int unlink(const char *path) {
    const char *name = watched(path);
    pthread_mutex_lock(&lock);
    int done = REAL(unlink)(path);
    if (!done && name) note('U', name, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    return done;
}
